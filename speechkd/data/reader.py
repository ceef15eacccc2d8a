"""Examples by number: audio, metadata, response and tensors of one (key, turn), each member checked against its digest as it is read."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.files import digest
from speechkd.core.types import Metadata
from speechkd.data.columns import Column
from speechkd.data.flac import decode_flac
from speechkd.data.index import ShardSet, tar_path
from speechkd.data.plan import PlanSource
from speechkd.data.tar import Member

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """One unit of training, decoded."""

    key: str
    turn: str
    metadata: Metadata
    samples_T: np.ndarray | None
    """16 kHz mono float32; None for a text-only sample"""
    question: str
    text: str
    tokens: list[int]
    stop: str
    signals: dict[str, Tensor]
    """at the predicting positions, one row per token; names are fields of `losses.Supervision`"""


class Reader:
    """Random access to the samples of a version and the examples of one column. Opens nothing before the first read; pickles small."""

    def __init__(self, shards: ShardSet, column: Column | None = None, signals: frozenset[str] | None = None) -> None:
        """`signals`: those of the column that are read; None: all that it has."""
        if column is not None and column.manifest["base"] != shards.digest:
            raise InputError(f"column `{column.name}` belongs to other shards than {shards.dataset}/{shards.version}")
        self.shards, self.column, self.signals = shards, column, signals

    def __getstate__(self) -> dict[str, ShardSet | Column | frozenset[str] | None]:
        return {"shards": self.shards, "column": self.column, "signals": self.signals}

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        names = ("shard", "audio_offset", "audio_bytes", "json_offset", "json_bytes")
        return {name: self.shards.table[name].to_numpy() for name in names}

    def audio(self, sample: int) -> np.ndarray | None:
        """Audio of a sample (row of the base index): float32 [T], 16 kHz; None for text only. Raises DataError naming shard and member."""
        if not self._places["audio_bytes"][sample]:
            return None
        name, data = self._member(sample, "audio", "flac")
        return decode_flac(data, name)

    def metadata(self, sample: int) -> Metadata:
        """Metadata of a sample. Raises DataError naming shard and member."""
        metadata: Metadata = json.loads(self._member(sample, "json", "json")[1])
        return metadata

    def read(self, row: int) -> Example:
        """Example `row` of the column. Raises DataError naming shard and member."""
        assert self.column is not None, "a reader without a column has samples, not examples"
        sample = self.column.sample_of(row)
        turn = self.column.read(row)
        return Example(
            key=self.column.key_of(row),
            turn=turn.turn,
            metadata=self.metadata(sample),
            samples_T=self.audio(sample),
            question=turn.question,
            text=turn.text,
            tokens=turn.tokens,
            stop=turn.stop,
            signals=self.column.signals(row, self.signals),
        )

    def source(
        self, role: str, split: str | None = None, passes: float = 1.0, stops: Collection[str] = ("eos", "length"), turns: str = ""
    ) -> PlanSource:
        """The column's examples as a plan deals them: of one split, with these stop reasons, whose turn begins with `turns`.

        Text length is that of the response. Raises InputError for an unknown split or if nothing is left.
        """
        assert self.column is not None, "a reader without a column has no examples"
        table, base = self.column.table, self.shards.table
        if split is not None and split not in self.shards.splits():
            raise InputError(unknown_name("split", split, self.shards.splits(), f"{self.shards.dataset}/{self.shards.version}"))
        sample_N = table["sample"].to_numpy()
        keep_N = pc.is_in(table["stop"], pa.array(list(stops), pa.string())).to_numpy(zero_copy_only=False).copy()
        if split is not None:
            keep_N &= pc.equal(base["split"], split).to_numpy(zero_copy_only=False)[sample_N]
        if turns:
            keep_N &= pc.starts_with(table["turn"], turns).to_numpy(zero_copy_only=False)
        row_N = np.flatnonzero(keep_N)
        if not row_N.size:
            where = f"split {split or 'any'}, stop {'/'.join(stops)}"
            raise InputError(f"column `{self.column.name}` has no examples for role `{role}` ({where})")
        return PlanSource(
            role=role,
            digest=digest([self.shards.digest, self.column.digest]),
            shard_N=table["shard"].to_numpy()[row_N],
            seconds_N=base["seconds"].to_numpy()[sample_N[row_N]],
            tokens_N=table["tokens"].to_numpy()[row_N],
            passes=passes,
            row_N=row_N,
        )

    def _member(self, sample: int, part: str, suffix: str) -> tuple[str, bytes]:
        place = self._places
        sha256 = self.shards.table[f"{part}_sha256"][sample].as_py()
        member = Member(int(place[f"{part}_offset"][sample]), int(place[f"{part}_bytes"][sample]), sha256)
        label = f"{self.shards.table['key'][sample].as_py()}.{suffix}"
        tar = tar_path(int(place["shard"][sample]))
        return f"{self.shards.root / tar}: member `{label}`", self.shards.tars.member(tar, member, label)
