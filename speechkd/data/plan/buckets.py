"""Two-dimensional length buckets: examples with similar audio and text lengths share a micro-batch; the budget fixes its size per bucket.

The turns of a clip are one item here (plan/turns.py), and items of one bucket have equally many. Bucket edges depend on the lengths alone,
so the number of micro-batches in an epoch follows from counts, before any ordering. The plane of (seconds, tokens) is split recursively
(k-d tree) where a cut saves most padding, measured in units of the budget. Lengths are first quantised to 256 x 256 cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CELLS, CHUNK = 256, 1 << 20
LONGEST = 1 << 20
"""Hundredths of a second, or tokens. Longer examples share a bucket; the budget still counts their full length"""
PADDING_ENOUGH = 0.005
"""Stop cutting when padding is below this share, in units of the budget"""


class Budget(NamedTuple):
    """What one micro-batch may hold, padding included."""

    examples: int
    seconds: float
    tokens: int

    def capacity(self, seconds: float, tokens: int) -> int:
        """How many examples of at most these lengths fit; at least 1."""
        count = self.examples
        if seconds > 0:
            count = min(count, int(self.seconds / seconds) + 1)
        if tokens > 0:
            count = min(count, self.tokens // int(tokens))
        while count > 1 and count * seconds > self.seconds:
            count -= 1
        return max(1, count)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of one source's items: seconds [N], tokens [N], examples of each (None: one), and the source's weight."""

    seconds_N: np.ndarray
    tokens_N: np.ndarray
    size_N: np.ndarray | None
    weight: int
    """an integer, so that sums are exact and every machine gets the same bucket edges"""

    def chunks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(slice, hundredths of a second, tokens), at most CHUNK examples at a time; both clipped to LONGEST."""
        for start in range(0, len(self.seconds_N), CHUNK):
            where = slice(start, min(start + CHUNK, len(self.seconds_N)))
            hundredths = np.ceil(np.asarray(self.seconds_N[where], dtype=np.float64) * 100)
            tokens = np.asarray(self.tokens_N[where], dtype=np.int64)
            yield where, np.clip(hundredths, 0, LONGEST).astype(np.int64), np.clip(tokens, 0, LONGEST)


@dataclass(frozen=True, slots=True)
class Buckets:
    """K buckets in order of (seconds, tokens, size): each item's bucket (`of_source[source][item]`), each bucket's largest lengths."""

    of_source: list[np.ndarray]
    """per source, uint16 [N]"""
    seconds_K: np.ndarray
    tokens_K: np.ndarray
    size_K: np.ndarray
    """examples of each item, int64"""
    capacity_K: np.ndarray
    """items of a full micro-batch, int64"""
    budget: Budget

    def leftovers(self, count_K: np.ndarray) -> list[list[int]]:
        """Group the items left over at the end of an epoch: lists of buckets whose leftovers fit into one micro-batch."""
        groups: list[list[int]] = []
        seconds = tokens = held = 0.0
        for bucket in np.flatnonzero(count_K).tolist():
            count = int(count_K[bucket] * self.size_K[bucket])
            most_s, most_t = max(seconds, float(self.seconds_K[bucket])), max(tokens, float(self.tokens_K[bucket]))
            if groups and held + count <= self.budget.capacity(most_s, int(most_t)):
                groups[-1].append(bucket)
                seconds, tokens, held = most_s, most_t, held + count
            else:
                groups.append([bucket])
                seconds, tokens, held = float(self.seconds_K[bucket]), float(self.tokens_K[bucket]), count
        return groups


def make_buckets(sources: Sequence[Lengths], budget: Budget, most: int) -> Buckets:
    """At most `most` buckets of lengths over all sources' items, each split by the size of items (65,536 at the very most)."""
    cell_of_second, seconds_C = _axis([(cs, lengths.weight) for lengths in sources for _, cs, _ in lengths.chunks()])
    cell_of_token, tokens_C = _axis([(tokens, lengths.weight) for lengths in sources for _, _, tokens in lengths.chunks()])
    count_CC = np.zeros((len(seconds_C), len(tokens_C)))
    for lengths in sources:
        for _, hundredths, tokens in lengths.chunks():
            cell = cell_of_second[hundredths].astype(np.int64) * len(tokens_C) + cell_of_token[tokens]
            count_CC += lengths.weight * np.bincount(cell, minlength=count_CC.size).reshape(count_CC.shape)
    bucket_CC = _cut(count_CC, seconds_C, tokens_C, budget, most)
    sizes = np.unique(np.concatenate([[1] if s.size_N is None else np.unique(s.size_N) for s in sources])).astype(np.int64)
    buckets = (int(bucket_CC.max()) + 1) * len(sizes)
    seconds_K, tokens_K = np.zeros(buckets), np.zeros(buckets, dtype=np.int64)
    of_source = []
    for lengths in sources:
        bucket_N = np.empty(len(lengths.seconds_N), dtype=np.uint16)
        for where, hundredths, tokens in lengths.chunks():
            bucket = bucket_CC[cell_of_second[hundredths], cell_of_token[tokens]] * len(sizes)
            bucket += np.searchsorted(sizes, 1 if lengths.size_N is None else lengths.size_N[where])
            bucket_N[where] = bucket
            np.maximum.at(seconds_K, bucket, np.asarray(lengths.seconds_N[where], dtype=np.float64))
            np.maximum.at(tokens_K, bucket, np.asarray(lengths.tokens_N[where], dtype=np.int64))
        of_source.append(bucket_N)
    size_K = np.tile(sizes, buckets // len(sizes))
    examples_K = np.array([budget.capacity(s, t) for s, t in zip(seconds_K.tolist(), tokens_K.tolist(), strict=True)], dtype=np.int64)
    return Buckets(of_source, seconds_K, tokens_K, size_K, np.maximum(1, examples_K // size_K), budget)


def _axis(values: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Quantise values to at most CELLS cells: (cell of each value, uint8; largest value of each cell).

    Cells are narrow where values are frequent: width ~ 1 / sqrt(density) wastes least.
    """
    length = max((int(array.max()) for array, _ in values if array.size), default=0) + 1
    count = np.zeros(length)
    for array, weight in values:
        count += weight * np.bincount(array, minlength=length)
    distinct = np.flatnonzero(count)
    if len(distinct) <= CELLS:
        cell = np.cumsum(count > 0) - 1
        return np.maximum(cell, 0).astype(np.uint8), distinct
    share = np.cumsum(np.sqrt(count))
    cell = np.minimum((share - np.sqrt(count)) * CELLS / share[-1], CELLS - 1).astype(np.int64)
    cell = np.unique(cell[distinct], return_inverse=True)[1][np.cumsum(count > 0) - 1]
    return cell.astype(np.uint8), np.array([distinct[cell[distinct] == c].max() for c in range(int(cell[distinct].max()) + 1)])


class _Box(NamedTuple):
    """A rectangle of cells and its best cut: (padding saved, axis, first cell of the upper part)."""

    low: tuple[int, int]
    high: tuple[int, int]
    saved: float
    axis: int
    cut: int


def _cut(count_CC: np.ndarray, seconds_C: np.ndarray, tokens_C: np.ndarray, budget: Budget, most: int) -> np.ndarray:
    """The bucket of each cell, int64 [C, C]."""
    values = (seconds_C.astype(np.float64), tokens_C.astype(np.float64))
    unit = (0.01 / budget.seconds, 1 / budget.tokens)
    padding = cost = 0.0
    for axis in (0, 1):
        count = count_CC.sum(axis=1 - axis)
        real = float(np.cumsum(count * values[axis])[-1])
        cost += unit[axis] * real
        padding += unit[axis] * (float(np.cumsum(count)[-1]) * float(values[axis][-1]) - real)
    boxes = [_best(count_CC, (0, 0), count_CC.shape, values, unit)]
    while len(boxes) < most and padding > PADDING_ENOUGH * (cost + padding):
        number = max(range(len(boxes)), key=lambda i: boxes[i].saved)
        box = boxes[number]
        if box.saved <= 0:
            break
        padding -= box.saved
        if box.axis == 0:
            corner_high, corner_low = (box.cut, box.high[1]), (box.cut, box.low[1])
        else:
            corner_high, corner_low = (box.high[0], box.cut), (box.low[0], box.cut)
        boxes[number] = _best(count_CC, box.low, corner_high, values, unit)
        boxes.append(_best(count_CC, corner_low, box.high, values, unit))
    bucket_CC = np.zeros(count_CC.shape, dtype=np.int64)
    for number, box in enumerate(sorted(boxes, key=lambda box: box.high)):
        bucket_CC[box.low[0] : box.high[0], box.low[1] : box.high[1]] = number
    return bucket_CC


def _best(
    count_CC: np.ndarray, low: tuple[int, int], high: tuple[int, int], values: tuple[np.ndarray, np.ndarray], unit: tuple[float, float]
) -> _Box:
    """The cut of a rectangle that saves most padding: everything below the cut is padded to a smaller length."""
    part = count_CC[low[0] : high[0], low[1] : high[1]]
    best = _Box(low, high, 0.0, 0, 0)
    for axis in (0, 1):
        count = part.sum(axis=1 - axis)
        used = np.flatnonzero(count)
        if len(used) < 2:
            continue
        lengths = values[axis][low[axis] : high[axis]][used]
        saved = unit[axis] * np.cumsum(count[used])[:-1] * (lengths[-1] - lengths[:-1])
        cut = int(saved.argmax())
        if saved[cut] > best.saved:
            best = _Box(low, high, float(saved[cut]), axis, low[axis] + int(used[cut]) + 1)
    return best
