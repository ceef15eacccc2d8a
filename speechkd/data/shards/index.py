"""Opens a published version: its samples, its teacher columns, and verification of its bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechkd.core.errors import DataError, InputError, unknown_name
from speechkd.core.files import sha256_bytes
from speechkd.core.types import Metadata
from speechkd.data.cards import Card, load_card
from speechkd.data.columns.column import Column, open_column
from speechkd.data.storage.files import Files
from speechkd.data.storage.index_rows import ShardRows, read_columns
from speechkd.data.storage.manifest import FORMAT_BASE, INDEX, MANIFEST, read_manifest, shard_name
from speechkd.data.storage.mapped import MappedTars
from speechkd.data.storage.store import Location, Unreachable, UrlPath, list_folder, parse_location
from speechkd.data.storage.tar import Member, bad_members

READER_COLUMNS = ["key", "seconds", "audio_offset", "audio_bytes", "audio_sha256", "json_offset", "json_bytes", "json_sha256"]
"""Index columns needed to read a sample"""
PARTS = (("flac", "audio"), ("json", "json"))
"""(suffix of the member, prefix of its index columns)"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored sample."""

    key: str
    shard: int
    row: int
    """position in the whole version, 0 .. samples - 1"""
    split: str
    seconds: float
    """0 for a text-only sample"""
    metadata: Metadata
    digest: str
    """sha256 over its audio's and metadata's sha256"""


def open_shards(path: Location | str) -> ShardSet:
    """Open ROOT/<dataset>/<version>, a folder or a URL. Raises InputError if nothing is published there or the store does not answer,
    DataError if the manifest is damaged."""
    root = parse_location(path)
    try:
        try:
            return ShardSet(root, read_manifest(root, FORMAT_BASE))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(_nothing_there(root)) from None
    except Unreachable as error:
        raise InputError(str(error)) from None


def _nothing_there(root: Location) -> str:
    if not root.is_dir():
        return f"no such folder `{root}`"
    done = [name for name in list_folder(root / "receipts") if name[:1].isdigit()]
    if done:
        return f"`{root}` is not published: {len(done)} shards are written, but {MANIFEST} is missing; run `speechkd shard` again"
    if isinstance(root, UrlPath):
        return f"`{root}` holds no {MANIFEST}; it has {', '.join(list_folder(root)[:8]) or 'nothing'}"
    published = [str(found.parent) for pattern in (f"*/{MANIFEST}", f"*/*/{MANIFEST}") for found in sorted(root.glob(pattern))]
    if published:
        return f"`{root}` holds no {MANIFEST}; published below it: {', '.join(published[:8])}"
    return f"`{root}` holds no {MANIFEST}; it has {', '.join(list_folder(root)[:8]) or 'nothing'}"


class ShardSet:
    """A published version. Cheap to open and to pickle; tables are read, and checked against the manifest, when first used."""

    def __init__(self, root: Location, manifest: dict[str, Any]) -> None:
        self.root, self.manifest = root, manifest
        self.files = Files(root, "", manifest["files"])
        self.dataset: str = manifest["dataset"]
        self.version: str = manifest["version"]
        self.digest: str = manifest["sha256"]
        self.shards: int = len(manifest["shards"])
        self.tars = MappedTars(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["manifest"])  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self.manifest["totals"]["samples"])

    @cached_property
    def card(self) -> Card:
        """The card that the shards were made from. Raises DataError if its digest differs from the manifest's."""
        with self.files.open("card.yaml") as stream:
            card = load_card(Path(stream.name), check_source=False)
        if card.digest != self.manifest["card"]:
            raise DataError(f"{self.root / 'card.yaml'}: is not the card that the shards were made from")
        return card

    @cached_property
    def table(self) -> pa.Table:
        """All of index.parquet: one row per sample, ordered by shard, then key. For large corpora read single columns with `read_index`."""
        return self.read_index(None)

    def read_index(self, names: list[str] | None) -> pa.Table:
        """Some columns of index.parquet, checked against the manifest; `split` as a dictionary."""
        return read_columns(self.files, INDEX, names, ["split"])

    @cached_property
    def rows(self) -> ShardRows:
        """Index rows of single shards."""
        counts = [entry["samples"] for entry in self.manifest["shards"]]
        return ShardRows(counts, lambda shard: self._shard_columns(shard, None))

    def _shard_columns(self, shard: int, names: list[str] | None) -> pa.Table:
        name = f"audio/{shard_name(shard)}.parquet"
        return read_columns(self.files, name, names or READER_COLUMNS, [])

    @property
    def starts(self) -> np.ndarray:
        """First row of each shard, and the number of rows: int64 [shards + 1]."""
        return self.rows.starts

    def keys(self, shard: int) -> list[str]:
        """Keys of a shard's samples, in order."""
        return list(self.rows.of_shard(shard)["key"])

    def splits(self) -> dict[str, int]:
        """Samples per split."""
        return dict(self._splits)

    @cached_property
    def _splits(self) -> dict[str, int]:
        counted = pc.value_counts(self.read_index(["split"])["split"].combine_chunks()).to_pylist()
        return {entry["values"]: entry["counts"] for entry in counted}

    def check_splits(self, names: Iterable[str]) -> None:
        """Raises InputError for an unknown split."""
        for name in names:
            if name not in self._splits:
                raise InputError(unknown_name("split", name, self._splits, f"{self.dataset}/{self.version}"))

    def samples(self, split: str | None = None, shard: int | None = None) -> list[Sample]:
        """Samples in row order, optionally of one split or shard. Raises InputError for an unknown split."""
        if split is not None:  # only shards that hold the split are opened
            self.check_splits([split])
            shard_N = self.read_index(["shard", "split"]).filter(pc.field("split").cast("string") == split)["shard"].unique().to_pylist()
            wanted = [number for number in shard_N if shard in (None, number)]
        else:
            wanted = list(range(self.shards)) if shard is None else [shard]
        return [sample for number in wanted for sample in self._samples(number) if split in (None, sample.split)]

    def _samples(self, shard: int) -> Iterator[Sample]:
        wanted = ["key", "split", "seconds", "metadata", "audio_sha256", "json_sha256"]
        for number, row in enumerate(self._shard_columns(shard, wanted).to_pylist()):
            digest = sha256_bytes(row["audio_sha256"] + row["json_sha256"])
            yield Sample(
                row["key"], shard, int(self.starts[shard]) + number, row["split"], row["seconds"], json.loads(row["metadata"]), digest
            )

    def column_names(self) -> list[str]:
        """Published columns, sorted."""
        return [name for name in list_folder(self.root / "columns") if (self.root / "columns" / name / MANIFEST).is_file()]

    def column(self, name: str) -> Column:
        """Open a published column. Raises InputError for an unknown name or a column of other shards."""
        if name not in self.column_names():
            raise InputError(unknown_name("column", name, self.column_names(), f"{self.dataset}/{self.version}"))
        return open_column(self.root, self.digest, name)

    def verify(self) -> Iterator[str]:
        """Read every byte, columns included; yield one line for each file and member that differs from the manifest."""
        bad = dict(self.files.problems())
        for name, problem in bad.items():
            yield f"{name}: {problem}"
            if name.endswith(".tar") and name.replace(".tar", ".parquet") not in bad:
                yield from self._bad_members(name)
        present = {f"audio/{name}" for name in list_folder(self.root / "audio") if not name.startswith(".")}
        for name in sorted(present - {name for name, entry in self.manifest["files"].items() if "in" not in entry}):
            yield f"{name}: is not in the manifest"
        yield from self._unpublished()
        for name in self.column_names():
            try:
                yield from (f"columns/{name}/{line}" for line in self.column(name).verify())
            except (DataError, InputError) as error:
                yield str(error)

    def _unpublished(self) -> Iterator[str]:
        """Columns with an index but no manifest. A column that is still being written has no index, and is not reported."""
        for name in list_folder(self.root / "columns"):
            column = self.root / "columns" / name
            if (column / INDEX).is_file() and not (column / MANIFEST).is_file():
                why = "it was removed, or publishing was interrupted; run `speechkd teach` again"
                yield f"columns/{name}: holds {INDEX} and no {MANIFEST}: {why}"

    def _listed(self, shard: int) -> Iterator[tuple[str, Member]]:
        rows = self._shard_columns(shard, None).to_pydict()
        parts = [(suffix, *(rows[f"{part}_{what}"] for what in ("offset", "bytes", "sha256"))) for suffix, part in PARTS]
        for number, key in enumerate(rows["key"]):
            for suffix, offsets, sizes, digests in parts:
                if sizes[number]:
                    yield f"{key}.{suffix}", Member(offsets[number], sizes[number], digests[number])

    def _bad_members(self, name: str) -> Iterator[str]:
        try:
            for label, problem in bad_members(self.files.where(name), self._listed(int(Path(name).stem))):
                yield f"{name}: member `{label}` {problem}"
        except FileNotFoundError:
            return  # already reported as missing


def tar_path(shard: int) -> str:
    """A base shard's tar, below the version's folder."""
    return f"audio/{shard_name(shard)}.tar"
