"""Reads a published column: a teacher's stored answers (turns) and signals about the samples of base shards.

Every tar member is checked against its digest when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from speechkd.core.config import build
from speechkd.core.errors import DataError, InputError
from speechkd.core.tensors import tensors_in
from speechkd.core.types import TeacherSignals
from speechkd.data.columns.signals import decode
from speechkd.data.columns.spec import ColumnSpec, Turn
from speechkd.data.storage.files import Files
from speechkd.data.storage.index_rows import ShardRows, read_columns
from speechkd.data.storage.manifest import (
    FORMAT_COLUMN,
    INDEX,
    MANIFEST,
    read_manifest,
    shard_name,
)
from speechkd.data.storage.mapped import MappedTars
from speechkd.data.storage.store import Location
from speechkd.data.storage.tar import Member, bad_members


def open_column(version: Location, base: str, name: str) -> Column:
    """Open column `name` of the base shards in folder `version`, whose digest is `base`.

    Raises InputError if the column belongs to other shards, DataError for a damaged manifest.
    """
    root = version / "columns" / name
    manifest = read_manifest(root, FORMAT_COLUMN)
    if manifest["base"] != base:
        raise InputError(
            f"column `{name}` belongs to base {manifest['base'][:12]}, these shards are {base[:12]}: "
            f"choose another name, or remove `{root}`"
        )
    return Column(version, manifest)


class Column:
    """A published column: one example per (key, turn), with a response and optional signals. Cheap to open and to pickle."""

    def __init__(self, version: Location, manifest: dict[str, Any]) -> None:
        """`version`: the folder of the base shards."""
        self.version, self.manifest = version, manifest
        self.name: str = manifest["column"]
        self.root = version / "columns" / self.name
        self.files = Files(version, f"columns/{self.name}", manifest["files"])
        self.digest: str = manifest["sha256"]
        self.spec = build(ColumnSpec, manifest["spec"], str(self.root / MANIFEST))
        self.tars = MappedTars(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {"version": self.version, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["version"], state["manifest"])  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self.manifest["totals"]["examples"])

    @cached_property
    def table(self) -> pa.Table:
        """All of index.parquet, in order of shard, key, position: COLUMN_SCHEMA plus `shard` and `sample` (row of the base index)."""
        return self.read_index(None)

    def read_index(self, names: list[str] | None) -> pa.Table:
        """Some Parquet columns of index.parquet (None: all), checked against the manifest; `stop` and `turn` as dictionaries."""
        return read_columns(self.files, INDEX, names, ["stop", "turn"])

    @cached_property
    def rows(self) -> ShardRows:
        """The same index, loaded one shard at a time."""
        return ShardRows([entry["examples"] for entry in self.manifest["shards"]], self._shard_rows)

    def _shard_rows(self, shard: int) -> pa.Table:
        name = f"{shard_name(shard)}.parquet"
        return read_columns(self.files, name, None, [])

    def _cell(self, row: int, name: str) -> Any:
        _, local_row, rows = self.rows.find(row)
        return rows[name][local_row]

    def sample_of(self, row: int) -> tuple[int, int]:
        """(base shard, sample within it) that example `row` belongs to."""
        shard, local_row, rows = self.rows.find(row)
        return shard, rows["row"][local_row]

    def key_of(self, row: int) -> str:
        """Key of the sample that example `row` belongs to."""
        key: str = self._cell(row, "key")
        return key

    def read(self, row: int) -> Turn:
        """The turn of example `row`. Raises DataError naming tar and member."""
        data = self._member(row, "", "response.json")
        try:
            return Turn(**json.loads(data)[self._cell(row, "position")])
        except (ValueError, TypeError, LookupError, RecursionError):
            raise DataError(f"{self.root}: member `{self.key_of(row)}.response.json` is not a list of turns") from None

    def signals(self, row: int, names: Collection[str] | None = None) -> TeacherSignals:
        """Signals of example `row`, decoded for the losses; with `names`, only these.

        Empty for a turn that failed or has no tokens. Raises DataError naming tar and member.
        """
        wanted = self.spec.signals.names if names is None else self.spec.signals.names.intersection(names)
        if not wanted or self._cell(row, "stop") == "error" or not self._cell(row, "tokens"):
            return TeacherSignals()
        label = f"{self.root}/{shard_name(self.sample_of(row)[0])}.tar: member `{self.key_of(row)}.signals.safetensors`"
        turn = self._cell(row, "turn")
        try:
            tensors = tensors_in(self._member(row, "signals_", "signals.safetensors"), f"{turn}.", label)
            return decode(self.spec.signals, wanted, tensors, self._cell(row, "tokens"), self.spec.vocab_size)
        except DataError as error:
            located = str(self.root) in str(error)  # the error names the file already
            raise error if located else DataError(f"{label}: turn `{turn}` {error}") from None

    def _member(self, row: int, part: str, suffix: str) -> bytes:
        shard, local_row, rows = self.rows.find(row)
        member = Member(rows[f"{part}offset"][local_row], rows[f"{part}bytes"][local_row], rows[f"{part}sha256"][local_row])
        return self.tars.member(f"{shard_name(shard)}.tar", member, f"{rows['key'][local_row]}.{suffix}")

    def verify(self) -> Iterator[str]:
        """Read every byte; yield one line for each file and member that differs from the manifest."""
        bad = dict(self.files.problems())
        for name, problem in bad.items():
            yield f"{name}: {problem}"
            if name.endswith(".tar") and name.replace(".tar", ".parquet") not in bad:
                yield from self._bad_members(name)

    def _bad_members(self, name: str) -> Iterator[str]:
        try:
            for label, problem in bad_members(self.files.where(name), self._listed(int(Path(name).stem))):
                yield f"{name}: member `{label}` {problem}"
        except FileNotFoundError:
            return  # already reported as missing

    def _listed(self, shard: int) -> Iterator[tuple[str, Member]]:
        """(label, member) of a shard's tar, once each: the turns of one key share a member, but each has a row."""
        rows, seen = self.rows.of_shard(shard), set()
        for part, suffix in (("", "response.json"), ("signals_", "signals.safetensors")):
            for key, *where in zip(rows["key"], *(rows[f"{part}{what}"] for what in ("offset", "bytes", "sha256")), strict=True):
                member = Member(*where)
                if member.size and (key, suffix) not in seen:
                    seen.add((key, suffix))
                    yield f"{key}.{suffix}", member
