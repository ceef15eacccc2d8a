"""Lists untrusted tar files by their headers, under limits, and reads single members. Nothing is extracted to disk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from speechkd.core.errors import InputError
from speechkd.data.audio.clips import decode_bytes
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources.base import Item
from speechkd.data.sources.rows import span_of

BLOCK = tarfile.BLOCKSIZE
MAX_EXTRA = 64 << 10
"""Most bytes of a header extension (long names)"""
MAX_MEMBER = 1 << 30
"""Most bytes of a member; larger ones are rejected"""
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class TarMember(NamedTuple):
    """One member; `problem` says why its bytes must not be read."""

    name: str
    offset: int
    size: int
    problem: str = ""


def list_tar(path: Path) -> Iterator[TarMember]:
    """All members except folders, in order, with USTAR, GNU and PAX names. Raises InputError if the file is not an uncompressed tar."""
    try:
        with path.open("rb") as stream:
            yield from _members(stream, path.stat().st_size, path)
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}") from None


def _members(stream: BinaryIO, total: int, path: Path) -> Iterator[TarMember]:
    at, long_name = 0, ""
    pax: dict[str, str] = {}
    while True:
        stream.seek(at)
        block = stream.read(BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]  # not in the type stubs
            return
        except tarfile.HeaderError:
            kind = (
                "a compressed file: unpack it first" if at == 0 and block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5") else "damaged"
            )
            raise InputError(f"`{path}` is not an uncompressed tar, or it is {kind} (byte {at})") from None
        data, size = at + BLOCK, int(pax.get("size", info.size)) if str(pax.get("size", "0")).isdigit() else info.size
        at = data + -(-size // BLOCK) * BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if not 0 <= info.size <= MAX_EXTRA:
                raise InputError(f"`{path}` has a header of {info.size} bytes, allowed {MAX_EXTRA} (byte {data - BLOCK})")
            extra = stream.read(info.size)
            if info.type == tarfile.XHDTYPE:
                pax = _pax(extra, path, data)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = extra.rstrip(b"\0").decode("utf-8", "surrogateescape")
            at = data + -(-info.size // BLOCK) * BLOCK
            continue
        name, sparse = pax.get("path") or long_name or info.name, any(key.startswith("GNU.sparse") for key in pax)
        long_name, pax = "", {}
        if size < 0:
            raise InputError(f"`{path}` has a member of {size} bytes (byte {data - BLOCK})")
        if info.type == tarfile.DIRTYPE:
            continue
        yield TarMember(name, data, size, _problem(info.type, sparse, data + size > total, size))


def _problem(kind: bytes, sparse: bool, cut: bool, size: int) -> str:
    if kind not in _REGULAR or sparse:
        return "is a link, a device or a sparse file in its tar"
    if size > MAX_MEMBER:
        return f"has {size} bytes, allowed {MAX_MEMBER}"
    return "is cut off: its tar ends before it does" if cut else ""


def _pax(data: bytes, path: Path, at: int) -> dict[str, str]:
    """`<length> <key>=<value>` records."""
    out: dict[str, str] = {}
    while data.strip(b"\0"):
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(data) or b"=" not in rest:
            raise InputError(f"`{path}` has a header that cannot be read (byte {at})")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        out[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return out


def read_range(path: Path, offset: int, size: int) -> bytes | Rejected:
    """The bytes of one member, or why they cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
    except OSError as error:
        return Rejected(f"cannot be opened: {error.strerror}")
    return data if len(data) == size else Rejected("is cut off: its tar ends before it does")


def member_payload(path: Path, data_root: Path, member: TarMember) -> dict[str, Any]:
    """The item payload that locates a member."""
    if member.problem:
        return {"problem": member.problem}
    return {"tar": path.relative_to(data_root).as_posix(), "at": member.offset, "bytes": member.size}


def read_members(items: Sequence[Item], data_root: Path, tars: Sequence[Path]) -> Iterator[RawClip | Rejected | None]:
    """Decode each item's member, or its span of it; None for an item without audio. Only these `tars` are opened."""
    by_name = {path.relative_to(data_root).as_posix(): path for path in tars}
    for item in items:
        payload = item.payload
        if payload.get("problem"):
            yield Rejected(payload["problem"])
        elif "tar" not in payload:
            yield None
        else:
            data = read_range(by_name[payload["tar"]], payload["at"], payload["bytes"])
            yield data if isinstance(data, Rejected) else decode_bytes(data, span_of(payload))
