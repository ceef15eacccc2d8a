"""Receipts and manifests: what a finished shard and a published folder say about themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import canonical_json, digest, publishing, read_json, sha256_bytes, sha256_file, write_json

FORMAT_BASE, FORMAT_COLUMN = "speechkd-shards/1", "speechkd-column/1"
MANIFEST, INDEX = "manifest.json", "index.parquet"
_SHARD_FILE = re.compile(r"^\d{6}\.(tar|parquet|json)$")
_TEMPORARY = re.compile(r"^\..*\.tmp$")


def shard_name(shard: int) -> str:
    """The six digits of a shard's files."""
    return f"{shard:06d}"


def signed(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with its own sha256, over its canonical JSON without that field."""
    return {**value, "sha256": digest(value)}


def read_signed(path: Path) -> dict[str, Any]:
    """Read what `signed` made. Raises FileNotFoundError; DataError if the bytes are not what the digest says."""
    try:
        value = read_json(path)
        said = value.pop("sha256")
        whole = digest(value) == said
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise DataError(f"{path}: is not a signed JSON object") from None
    if not whole:
        raise DataError(f"{path}: its content differs from its own sha256")
    return {**value, "sha256": said}


def file_entry(path: Path) -> dict[str, Any]:
    """sha256 and size of a file, as manifests and receipts list it."""
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def write_parquet(path: Path, table: pa.Table) -> dict[str, Any]:
    """Publish a table; equal tables give equal bytes. Returns its file entry."""
    with publishing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=1 << 20)
        return file_entry(temporary)


def read_parquet(path: Path, said: Mapping[str, Any]) -> pa.Table:
    """Read a whole small table after checking it against its file entry. Raises DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if sha256_bytes(data) != said["sha256"]:
        raise DataError(f"{path}: bytes differ from their sha256")
    return pq.read_table(pa.BufferReader(data))


@dataclass(frozen=True, slots=True)
class Receipts:
    """One receipt per finished shard. A receipt counts only for the same work (`binding`) and while its files are there."""

    root: Path
    folder: Path
    binding: Callable[[int], dict[str, Any]]
    """what the shard was made from: digests of card and items, or of base and column spec"""

    def read(self, shard: int) -> dict[str, Any] | None:
        """The shard's receipt, or None where the shard is still to do."""
        try:
            receipt = read_signed(self.folder / f"{shard_name(shard)}.json")
            if receipt["binding"] != self.binding(shard):
                return None
            sizes = {name: (self.root / name).stat().st_size for name in receipt["files"]}
        except (FileNotFoundError, DataError, KeyError):
            return None
        return receipt if all(receipt["files"][name]["bytes"] == size for name, size in sizes.items()) else None

    def write(self, shard: int, files: dict[str, Any], facts: dict[str, Any]) -> None:
        """The last act on a shard."""
        write_json(self.folder / f"{shard_name(shard)}.json", signed({"binding": self.binding(shard), "files": files, **facts}))

    def do(self, shard: int, work: Callable[[], None]) -> None:
        """Run `work`, which ends in `write`. Another writer of the same shard may publish first and sweep our temporary file away."""
        try:
            work()
        except FileNotFoundError:
            if self.read(shard) is None:
                raise


def sweep(folders: Sequence[Path], shards: int) -> None:
    """Remove what killed writers left: temporary names, and shards beyond the last. Called when every shard is published."""
    for folder in folders:
        for path in folder.iterdir():
            beyond = _SHARD_FILE.match(path.name) and int(path.name[:6]) >= shards
            if beyond or _TEMPORARY.match(path.name):
                path.unlink(missing_ok=True)


def check_files(root: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(file, problem) for every listed file that is missing or has other bytes."""
    for name, said in manifest["files"].items():
        path = root / name
        if not path.is_file():
            yield name, "is missing"
        elif path.stat().st_size != said["bytes"]:
            yield name, f"has {path.stat().st_size} bytes, must have {said['bytes']}"
        elif sha256_file(path) != said["sha256"]:
            yield name, "bytes differ from their sha256"


def read_manifest(root: Path, format: str) -> dict[str, Any]:
    """A published folder's manifest. Raises FileNotFoundError, DataError (damaged), InputError (another format, paths outside)."""
    manifest = read_signed(root / MANIFEST)
    if manifest.get("format") != format:
        raise InputError(f"format `{manifest.get('format')}`; this version reads `{format}` ({root / MANIFEST})")
    for name in manifest["files"]:
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{root / MANIFEST}: lists `{name[:100]}`, which is not below its folder")
    return manifest


def json_bytes(value: Any) -> bytes:
    """Canonical JSON as UTF-8. Raises ValueError for NaN and for text that is no Unicode."""
    return canonical_json(value).encode("utf-8")


def loose_digest(value: Any) -> str:
    """sha256 of JSON that may hold what canonical JSON refuses (a raw item before it is judged)."""
    return sha256_bytes(json.dumps(value, sort_keys=True).encode("ascii"))
