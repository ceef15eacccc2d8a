"""Deterministic USTAR archives: equal members give equal bytes; offset and digest of each member are known on writing."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from speechkd.core.files import CHUNK, sha256_bytes
from speechkd.data.storage.store import Location, publishing_at, reading, size_of

BLOCK = 512
SUFFIXES = ("flac", "json", "response.json", "signals.safetensors")


class Member(NamedTuple):
    """Location of a member's data in its tar; an absent member has 0 bytes."""

    offset: int
    size: int
    sha256: bytes
    """32 bytes"""


ABSENT = Member(0, 0, bytes(32))


def _template() -> bytes:
    """Header of an empty, nameless regular file with fixed owner, mode and time."""
    header = tarfile.TarInfo("")
    header.mode, header.mtime = 0o644, 0
    return header.tobuf(format=tarfile.USTAR_FORMAT)


_EMPTY = _template()
_SIZE, _CHECKSUM, _BLANK = slice(124, 136), slice(148, 156), b" " * 8
_SUM = sum(_EMPTY[:124]) + sum(_BLANK) + sum(_EMPTY[136:148]) + sum(_EMPTY[156:])


def ustar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's data, identical to those of `tarfile` but ten times faster. Raises ValueError if the name or
    size does not fit."""
    letters, digits = name.encode("ascii"), b"%011o" % size
    if len(letters) > 100 or len(digits) > 11:
        raise ValueError(f"`{name}` of {size} bytes does not fit a USTAR header")
    block = bytearray(_EMPTY)
    block[: len(letters)] = letters
    block[_SIZE] = digits + b"\0"
    block[_CHECKSUM] = b"%06o\0 " % (_SUM + sum(letters) + sum(digits))
    return bytes(block)


class TarWriter:
    """Appends members to an open file, hashing as it goes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._hash, self.bytes = stream, hashlib.sha256(), 0

    def add(self, key: str, suffix: str, data: bytes) -> Member:
        """Append `<key>.<suffix>`. The key must satisfy `names.is_name`."""
        assert suffix in SUFFIXES, suffix
        self._write(ustar_header(f"{key}.{suffix}", len(data)))
        offset = self.bytes
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return Member(offset, len(data), hashlib.sha256(data).digest())

    def close(self) -> str:
        """Write the end mark and return the tar's sha256."""
        self._write(bytes(2 * BLOCK))
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.bytes += len(data)


@contextmanager
def publishing_tar(path: Location) -> Iterator[TarWriter]:
    """A TarWriter whose complete file appears at `path` when the `with` block ends. The caller must close the writer."""
    with publishing_at(path) as temporary:
        with temporary.open("wb", buffering=CHUNK) as stream:
            yield TarWriter(stream)


def bad_members(tar: Location, listed: Iterable[tuple[str, Member]]) -> Iterator[tuple[str, str]]:
    """(member, problem) for each `listed` member of a local or remote tar that fails its digest.

    Reads the tar sequentially, since not every server can seek, with one member in memory at a time.
    """
    tar_size, at = size_of(tar), 0
    with reading(tar) as stream:
        for label, member in sorted(listed, key=lambda pair: pair[1].offset):
            end = member.offset + member.size
            if not 0 <= member.offset <= end <= tar_size:
                yield label, f"ends at byte {end}, the file at {tar_size}"
                continue
            if member.offset < at:
                yield label, "begins inside of another member"
                continue
            while at < member.offset:
                at += len(_read(stream, min(CHUNK, member.offset - at)))
            data, at = _read(stream, member.size), end
            problem = member_problem(memoryview(data), member._replace(offset=0))
            if problem:
                yield label, problem


def _read(stream: BinaryIO, size: int) -> bytes:
    """The next `size` bytes, assembled from partial reads; padded with zeros if the stream ends early."""
    parts = []
    while size:
        parts.append(stream.read(size) or bytes(size))
        size -= len(parts[-1])
    return b"".join(parts)


def member_problem(data: memoryview, member: Member) -> str | None:
    """What is wrong with a member's bytes, or None."""
    if not (0 <= member.offset <= member.offset + member.size <= len(data)):
        return f"ends at byte {member.offset + member.size}, the file at {len(data)}"
    if sha256_bytes(data[member.offset : member.offset + member.size]) != member.sha256.hex():
        return "bytes differ from their sha256"
    return None
