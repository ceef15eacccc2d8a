"""Manifests of published folders, and receipts of finished shards: JSON objects that contain their own sha256."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import canonical_json, digest, readable_json, sha256_bytes, sha256_file
from speechkd.data.storage.files import Files
from speechkd.data.storage.index_rows import read_columns
from speechkd.data.storage.store import Location, create, list_folder, publishing_at, remove, size_of, write_json

FORMAT_BASE, FORMAT_COLUMN = "speechkd-shards/1", "speechkd-column/1"
MAX_MANIFEST_BYTES = 256 << 20
"""Enough for a million shards"""
MANIFEST, INDEX = "manifest.json", "index.parquet"
_SHARD_FILE = re.compile(r"^\d{6}\.(tar|parquet|json)$")
_TEMPORARY = re.compile(r"^\..*\.tmp$")
_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
"""A path component in a manifest, or a version name: never `..`, never empty"""


def shard_name(shard: int) -> str:
    """File name stem of a shard: six digits."""
    return f"{shard:06d}"


def with_self_digest(value: dict[str, Any]) -> dict[str, Any]:
    """`value` plus `sha256`, the digest of its canonical JSON without that field."""
    return {**value, "sha256": digest(value)}


def read_self_digested(path: Location) -> dict[str, Any]:
    """Read an object made by `with_self_digest`. Raises FileNotFoundError; DataError if it fails its digest.

    The digest covers the values. The text must also be their canonical rendering (`1e-05` could be written `1E-05`).
    """
    if size_of(path) > MAX_MANIFEST_BYTES:
        raise DataError(f"{path}: has {size_of(path)} bytes, allowed {MAX_MANIFEST_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        stated = value["sha256"]
        intact = digest({name: part for name, part in value.items() if name != "sha256"}) == stated and readable_json(value) == text
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise DataError(f"{path}: is not a JSON object with a `sha256` of its own content") from None
    if not intact:
        raise DataError(f"{path}: its content differs from its own sha256")
    checked: dict[str, Any] = value
    return checked


def write_parquet(path: Location, table: pa.Table) -> dict[str, Any]:
    """Write a table atomically; equal tables give equal bytes. Returns its file entry."""
    with publishing_at(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=1 << 20)
        return {"sha256": sha256_file(temporary), "bytes": temporary.stat().st_size}


def read_parquet(files: Files, name: str) -> pa.Table:
    """Read a table, checked against its file entry. Raises DataError."""
    return read_columns(files, name, None, [])


@dataclass(frozen=True, slots=True)
class Receipts:
    """One receipt per finished shard. A receipt is valid if its `binding` matches and its files exist in the stated sizes."""

    version: Location
    below: str
    """folder below the version that file names are relative to: "" or "columns/<name>" """
    binding: Callable[[int], dict[str, Any]]
    """shard -> digests of its inputs: card and items, or base shard and column spec"""

    @property
    def folder(self) -> Location:
        """Folder of the receipts."""
        return (self.version / self.below if self.below else self.version) / "receipts"

    def files(self, entries: Mapping[str, Mapping[str, Any]]) -> Files:
        """The files listed in receipts."""
        return Files(self.version, self.below, entries)

    def read(self, shard: int) -> dict[str, Any] | None:
        """The shard's valid receipt, or None if the shard must be written."""
        try:
            receipt = read_self_digested(self.folder / f"{shard_name(shard)}.json")
            if receipt["binding"] != self.binding(shard):
                return None
            files = self.files(receipt["files"])
            sizes = {name: size_of(files.where(name)) for name in files.entries}
        except (FileNotFoundError, DataError, KeyError):
            return None
        return receipt if all(receipt["files"][name]["bytes"] == size for name, size in sizes.items()) else None

    def write(self, shard: int, files: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write the receipt: the last step of a shard."""
        write_json(self.folder / f"{shard_name(shard)}.json", with_self_digest({"binding": self.binding(shard), "files": files, **facts}))

    def recheck(self, shards: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Read every byte of finished shards; withdraw the receipts of those that differ, and yield each with what is wrong.

        For a folder that was published once: what is published again must be what was written, not what happens to lie there.
        """
        for shard in shards:
            if (receipt := self.read(shard)) is not None:
                wrong = [f"{name}: {problem}" for name, problem in self.files(receipt["files"]).problems()]
                if wrong:
                    self.withdraw(shard)
                    yield shard, "; ".join(wrong)

    def withdraw(self, shard: int) -> None:
        """Remove a receipt, so that its shard is written again."""
        remove(self.folder / f"{shard_name(shard)}.json")

    def do(self, shard: int, work: Callable[[], None]) -> None:
        """Run `work`, which ends in `write`. Tolerates another writer that finishes first and removes our temporary file."""
        try:
            work()
        except FileNotFoundError:
            if self.read(shard) is None:
                raise


def sweep(folders: Sequence[Location], keep: Collection[str]) -> None:
    """Remove leftovers of killed writers: temporary files, and shard files not in `keep`. Called once every shard is published."""
    for folder in folders:
        for name in list_folder(folder):
            if _TEMPORARY.match(name) or (_SHARD_FILE.match(name) and name not in keep):
                remove(folder / name)


def stored_names(files: Mapping[str, Mapping[str, Any]], shards: int) -> set[str]:
    """Names of the shard files stored in this folder (not in an earlier version) and of its receipts."""
    return {name.rpartition("/")[2] for name, entry in files.items() if "in" not in entry} | {
        f"{shard_name(shard)}.json" for shard in range(shards)
    }


def create_manifest(path: Location, value: dict[str, Any]) -> None:
    """Write the manifest, which publishes the folder. Raises InputError if different content was published there first."""
    content = readable_json(with_self_digest(value))
    try:
        create(path, content.encode("utf-8"))
    except FileExistsError:
        if path.read_text(encoding="utf-8") != content:
            raise InputError(f"`{path}` was published in the meantime with different content: choose a new name or version") from None


def read_manifest(root: Location, format: str) -> dict[str, Any]:
    """Read and validate a manifest. Raises FileNotFoundError, Unreachable, DataError (damaged, or lists files outside it), InputError
    (unknown format)."""
    manifest = read_self_digested(root / MANIFEST)
    if manifest.get("format") != format:
        raise InputError(f"format `{str(manifest.get('format'))[:80]}`; this version reads `{format}` ({root / MANIFEST})")
    for name, entry in _entries(manifest, root):
        if not all(_PART.match(part) for part in name.split("/")):
            raise DataError(f"{root / MANIFEST}: lists `{name[:100]}`, which is not below its folder")
        if not (_is_digest(entry.get("sha256")) and isinstance(entry.get("bytes"), int) and entry["bytes"] >= 0):
            raise DataError(f"{root / MANIFEST}: `{name[:100]}` has no sha256 and size")
        if not _PART.match(str(entry.get("in", "x"))):
            raise DataError(f"{root / MANIFEST}: `{name[:100]}` is in `{str(entry['in'])[:100]}`, which is not a valid version")
    if manifest.get("grows") is not None and not _PART.match(str(manifest["grows"])):
        raise DataError(f"{root / MANIFEST}: grows `{str(manifest['grows'])[:100]}`, which is not a valid version")
    return manifest


def _entries(manifest: Mapping[str, Any], root: Location) -> Iterable[tuple[str, Any]]:
    files, shards = manifest.get("files"), manifest.get("shards")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()) or not isinstance(shards, list):
        raise DataError(f"{root / MANIFEST}: lists no files")
    return files.items()


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def json_bytes(value: Any) -> bytes:
    """Canonical JSON as UTF-8. Raises ValueError for NaN and for text that is not valid Unicode."""
    return canonical_json(value).encode("utf-8")


def loose_digest(value: Any) -> str:
    """sha256 of JSON that canonical JSON may refuse (NaN, lone surrogates): raw items, before validation."""
    return sha256_bytes(json.dumps(value, sort_keys=True).encode("ascii"))
