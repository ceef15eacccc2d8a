"""Statistics of published shards: lengths and metadata from the index, loudness from a sample of decoded clips."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechkd.core.seeds import derive
from speechkd.data.audio.clips import RATE
from speechkd.data.audio.gate import clipped, longest_zeros
from speechkd.data.audio.limits import CONVERSION
from speechkd.data.reader import Reader
from speechkd.data.shards.assignment import QUARANTINE
from speechkd.data.shards.index import ShardSet

ROWS, CLIPS, VALUES = 200_000, 400, 12
"""Most metadata rows to read and clips to decode (both spread evenly over the version), and most values to list per field"""
FRAME = RATE // 50
QUIET_DB, BELOW_LOUDEST_DB = -60.0, -40.0
"""A 20 ms frame is silent below QUIET_DB dBFS, or BELOW_LOUDEST_DB below the loudest frame of its clip"""


@dataclass(frozen=True, slots=True)
class ClipLevel:
    """Loudness, silence and clipping of one clip."""

    row: int
    seconds: float
    level_db: float
    """RMS of the frames that are not silent, dBFS; -inf for digital silence"""
    peak_db: float
    silent: float
    """share of silent frames"""
    clipped: int
    """samples in runs of three or more at full scale"""
    dc: float
    """mean, as a share of full scale"""
    zeros: float
    """seconds of the longest stretch of exact zeros"""


@dataclass(frozen=True, slots=True)
class FieldStatistics:
    """How often a metadata name and its values occur."""

    name: str
    present: float
    """share of the rows read that have it"""
    values: int
    """distinct values"""
    common: list[tuple[str, int, float]]
    """(value, samples, hours) of the most common"""


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """Statistics of one version, for the HTML report."""

    seconds_N: np.ndarray
    """durations of the samples with audio"""
    texts: int
    """samples without audio"""
    splits: list[tuple[str, int, float]]
    """(split, samples, hours)"""
    rows: int
    """number of rows whose metadata was read"""
    fields: list[FieldStatistics]
    levels: list[ClipLevel]
    level_splits: list[str]
    """the split of each decoded clip"""
    reasons: list[tuple[str, int, list[str]]] = field(default_factory=list)
    """(reason without its numbers, items, some keys)"""
    conversion: list[tuple[str, str, int]] = field(default_factory=list)
    """(limit on what conversion destroys, what the card allows, items over it)"""


def measure(shards: ShardSet, clips: int = CLIPS) -> ShardStatistics:
    """Measure a version. Rows and clips are chosen by its digest, so results are reproducible. Raises DataError for damaged bytes."""
    table = shards.read_index(["split", "seconds", "audio_bytes", "metadata"])
    seconds_N = table["seconds"].to_numpy()
    has_audio_N = table["audio_bytes"].to_numpy() > 0
    rows = evenly_drawn(np.arange(len(table)), ROWS, shards.digest, "rows")
    chosen = evenly_drawn(np.flatnonzero(has_audio_N), clips, shards.digest, "clips")
    return ShardStatistics(
        seconds_N=seconds_N[has_audio_N],
        texts=int((~has_audio_N).sum()),
        splits=_splits(table),
        rows=len(rows),
        fields=_fields(table["metadata"].take(pa.array(rows)).to_pylist(), seconds_N[rows]),
        levels=_levels(shards, chosen),
        level_splits=[str(split) for split in table["split"].take(pa.array(chosen)).to_pylist()],
        reasons=_reasons(shards),
        conversion=_conversion(shards),
    )


def evenly_drawn(rows: np.ndarray, count: int, *seed: str) -> np.ndarray:
    """`count` of `rows`: one drawn from each of `count` equal sections."""
    if len(rows) <= count:
        return rows
    edges = np.linspace(0, len(rows), count + 1).astype(np.int64)
    return rows[np.random.default_rng(derive(0, *seed)).integers(edges[:-1], edges[1:])]


def _splits(table: pa.Table) -> list[tuple[str, int, float]]:
    grouped = table.group_by("split").aggregate([("seconds", "sum"), ("seconds", "count")])
    rows = sorted(grouped.to_pylist(), key=lambda row: str(row["split"]))
    return [(row["split"], row["seconds_count"], row["seconds_sum"] / 3600) for row in rows]


def _fields(texts: Sequence[str], seconds: np.ndarray) -> list[FieldStatistics]:
    samples: dict[str, Counter[str]] = {}
    hours: dict[str, Counter[str]] = {}
    for text, length in zip(texts, seconds.tolist(), strict=True):
        for name, value in json.loads(text).items():
            word = str(value)[:80]
            samples.setdefault(name, Counter())[word] += 1
            hours.setdefault(name, Counter())[word] += length / 3600
    return [
        FieldStatistics(
            name,
            counts.total() / max(len(texts), 1),
            len(counts),
            [
                (value, count, float(hours[name][value]))
                for value, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:VALUES]
            ],
        )
        for name, counts in sorted(samples.items(), key=lambda pair: (-pair[1].total(), pair[0]))
    ]


def _levels(shards: ShardSet, rows: np.ndarray) -> list[ClipLevel]:
    reader = Reader(shards)
    out = []
    for row in rows.tolist():
        samples_T = reader.audio(row)
        assert samples_T is not None
        out.append(clip_level(samples_T, row))
    return out


def clip_level(samples_T: np.ndarray, row: int = 0) -> ClipLevel:
    """Measure one clip, float32 [T] at 16 kHz."""
    frames = np.pad(samples_T, (0, -len(samples_T) % FRAME)).reshape(-1, FRAME) if len(samples_T) else np.zeros((1, FRAME))
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    frame_db = _db(power)
    silent = (frame_db < QUIET_DB) | (frame_db < frame_db.max() + BELOW_LOUDEST_DB)
    heard = power[~silent]
    return ClipLevel(
        row=row,
        seconds=len(samples_T) / RATE,
        level_db=float(_db(heard.mean())) if len(heard) else float("-inf"),
        peak_db=float(_db(np.square(np.abs(samples_T).max(initial=0.0), dtype=np.float64))),
        silent=float(silent.mean()),
        clipped=int(clipped(samples_T).sum()),
        dc=float(samples_T.mean(dtype=np.float64)) if len(samples_T) else 0.0,
        zeros=longest_zeros(samples_T) / RATE,
    )


def _db(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        out: np.ndarray = 10 * np.log10(power)
        return out


def _reasons(shards: ShardSet) -> list[tuple[str, int, list[str]]]:
    groups: dict[str, list[str]] = {}
    for line in shards.files.read(QUARANTINE).splitlines():  # of bytes, as in `shards.assignment`
        entry = json.loads(line)
        groups.setdefault(_without_numbers(entry["reason"]), []).append(entry["key"])
    return [(reason, len(keys), keys[:5]) for reason, keys in sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0]))]


def _conversion(shards: ShardSet) -> list[tuple[str, str, int]]:
    over = Counter(json.loads(line).get("limit") for line in shards.files.read(QUARANTINE).splitlines())
    values = {name: getattr(shards.card.audio, name) for name in CONVERSION}
    return [(name, "any" if value is None else f"{value:g}", over[name]) for name, value in values.items()]


def _without_numbers(text: str) -> str:
    """Reasons that differ only in numbers, or in the path that is not there, are counted as one."""
    text = re.sub(r"^no such file: `.*`$", "no such file", text, flags=re.DOTALL)
    return "".join("#" if letter.isdigit() else letter for letter in text).replace("##", "#").replace("##", "#").replace("##", "#")[:200]


def column_facts(shards: ShardSet) -> dict[str, Mapping[str, int]]:
    """Totals of each published column."""
    return {name: shards.column(name).manifest["totals"] for name in shards.column_names()}


def token_lengths(shards: ShardSet, column: str) -> np.ndarray:
    """Response lengths of a column's examples, in tokens."""
    lengths: np.ndarray = pc.cast(shards.column(column).read_index(["tokens"])["tokens"], pa.int64()).to_numpy()
    return lengths
