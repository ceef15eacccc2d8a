"""Random access to examples: audio, metadata, response and signals, each checked against its digest when read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import digest
from speechkd.core.types import Metadata, TeacherSignals
from speechkd.data.audio.flac import decode_flac
from speechkd.data.columns.column import Column
from speechkd.data.plan.plan import PlanSource
from speechkd.data.shards.index import ShardSet, tar_path
from speechkd.data.storage.tar import Member


@dataclass(frozen=True, slots=True)
class Example:
    """One decoded training example."""

    key: str
    turn: str
    metadata: Metadata
    samples_T: np.ndarray | None
    """16 kHz mono float32; None for a text-only sample"""
    question: str
    text: str
    tokens: list[int]
    stop: str
    signals: TeacherSignals
    """one row per response token, at the position that predicts it"""


class Reader:
    """Random access to the samples of a version and the examples of one column. Opens files on first read; pickles small."""

    def __init__(self, shards: ShardSet, column: Column | None = None, signals: frozenset[str] | None = None) -> None:
        """`signals`: names to read; None: all signals of the column."""
        if column is not None and column.manifest["base"] != shards.digest:
            raise InputError(f"column `{column.name}` belongs to other shards than {shards.dataset}/{shards.version}")
        self.shards, self.column, self.signals = shards, column, signals

    def __getstate__(self) -> dict[str, ShardSet | Column | frozenset[str] | None]:
        return {"shards": self.shards, "column": self.column, "signals": self.signals}

    def audio(self, sample: int) -> np.ndarray | None:
        """Audio of a sample (row of the base index): float32 [T], 16 kHz; None for text only. Raises DataError naming shard and member."""
        member = self._member(sample, "audio", "flac")
        if member is None:
            return None
        _, local_row, rows = self.shards.rows.find(sample)
        return decode_flac(member[1], member[0], rows["seconds"][local_row])

    def metadata(self, sample: int) -> Metadata:
        """Metadata of a sample. Raises DataError naming shard and member."""
        member = self._member(sample, "json", "json")
        assert member is not None, "every sample has metadata"
        try:
            metadata: Metadata = json.loads(member[1])
        except (ValueError, RecursionError):
            raise DataError(f"{member[0]} is not JSON") from None
        return metadata

    def sample_of(self, row: int) -> int:
        """Sample (row of the base index) of example `row` of the column."""
        assert self.column is not None, "a reader without a column has samples, not examples"
        shard, local_row = self.column.sample_of(row)
        return int(self.shards.starts[shard]) + local_row

    def read(self, row: int, hear: bool = True) -> Example:
        """Example `row` of the column; `hear=False` skips the audio. Raises DataError naming shard and member."""
        assert self.column is not None, "a reader without a column has samples, not examples"
        sample = self.sample_of(row)
        turn = self.column.read(row)
        return Example(
            key=self.column.key_of(row),
            turn=turn.turn,
            metadata=self.metadata(sample),
            samples_T=self.audio(sample) if hear else None,
            question=turn.question,
            text=turn.text,
            tokens=turn.tokens,
            stop=turn.stop,
            signals=self.column.signals(row, self.signals),
        )

    def source(
        self,
        stream: str,
        split: str | Collection[str] | None = None,
        passes: float = 1.0,
        stops: Collection[str] = ("eos", "length"),
        turns: str = "",
    ) -> PlanSource:
        """The column's examples as input to a `Plan`: those of some splits, with these stop reasons, whose turn name starts with `turns`.

        Token lengths are those of the responses. Raises InputError for an unknown split or if no example is left.
        """
        assert self.column is not None, "a reader without a column has no examples"
        column_names = ["shard", "sample", "tokens", "stop", *(["turn"] if turns else [])]
        with ThreadPoolExecutor(2) as pool:  # both files are hashed in full, outside the GIL
            reading = pool.submit(self.column.read_index, column_names)
            base = self.shards.read_index(["seconds", "split"])
            table = reading.result()
        sample_N = table["sample"].to_numpy()
        keep_N = _chosen(table["stop"], lambda stop: stop in stops)
        splits = [split] if isinstance(split, str) else split
        if splits is not None:
            self.shards.check_splits(splits)
            keep_N &= _chosen(base["split"], lambda name: name in splits)[sample_N]
        if turns:
            keep_N &= _chosen(table["turn"], lambda turn: turn.startswith(turns))
        row_N = np.flatnonzero(keep_N).astype(np.int32 if len(keep_N) < 2**31 else np.int64)
        if not row_N.size:
            where = f"split {'/'.join(splits or ['any'])}, stop {'/'.join(stops)}"
            raise InputError(
                f"column `{self.column.name}` has no examples for stream `{stream}`: {where}; see "
                "data.corpora.train_splits, or `speechkd teach --retry-failed`"
            )
        kept = slice(None) if len(row_N) == len(keep_N) else row_N
        clip_N = sample_N[kept]
        return PlanSource(
            stream=stream,
            digest=digest([self.shards.digest, self.column.digest]),
            shard_N=table["shard"].to_numpy()[kept],
            seconds_N=base["seconds"].to_numpy()[sample_N[kept]],
            tokens_N=table["tokens"].to_numpy()[kept],
            passes=passes,
            row_N=None if len(row_N) == len(keep_N) else row_N,
            clip_N=clip_N if (clip_N[1:] == clip_N[:-1]).any() else None,
        )

    def _member(self, sample: int, part: str, suffix: str) -> tuple[str, bytes] | None:
        """(description of the location, checked bytes) of a member; None if the sample has none."""
        shard, local_row, rows = self.shards.rows.find(sample)
        member = Member(rows[f"{part}_offset"][local_row], rows[f"{part}_bytes"][local_row], rows[f"{part}_sha256"][local_row])
        if not member.size:
            return None
        label, tar = f"{rows['key'][local_row]}.{suffix}", tar_path(shard)
        return f"{self.shards.files.where(tar)}: member `{label}`", self.shards.tars.member(tar, member, label)


def _chosen(column: pa.ChunkedArray, wanted: Callable[[str], bool]) -> np.ndarray:
    """bool [N]: which rows of a dictionary column have a wanted value; `wanted` is called once per distinct value."""
    masks = [np.zeros(0, dtype=bool)]
    for chunk in column.chunks:  # one of each row group, with its own dictionary
        yes = np.array([wanted(value) for value in chunk.dictionary.to_pylist()], dtype=bool)
        masks.append(yes[chunk.indices.to_numpy()])
    chosen: np.ndarray = np.concatenate(masks)
    return chosen
