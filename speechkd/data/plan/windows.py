"""An epoch as a sequence of shuffle windows: the shards of each, the examples carried over, and the micro-batches each emits.

The number of micro-batches per window follows from counts. To find a step, only its window is ordered, and those earlier windows whose
leftover examples it uses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import RLock
from typing import NamedTuple

import numpy as np

from speechkd.core.seeds import derive
from speechkd.data.plan.balance import Cost, in_steps
from speechkd.data.plan.buckets import Buckets

EPOCHS_KEPT, WINDOWS_KEPT = 2, 4
UNITS_AT_A_TIME = 256


class ShardSpans(NamedTuple):
    """Start of each shard's items [S + 1], and their order by shard (None: already sorted)."""

    order_N: np.ndarray | None
    start_S: np.ndarray

    @classmethod
    def from_shard_numbers(cls, shard_N: np.ndarray) -> ShardSpans:
        """From the shard number of each example. The sort is stable: the order within a shard is kept."""
        order_N = None if bool((shard_N[1:] >= shard_N[:-1]).all()) else np.argsort(shard_N, kind="stable")
        ordered_N = shard_N if order_N is None else shard_N[order_N]
        edges = np.flatnonzero(ordered_N[1:] != ordered_N[:-1]) + 1
        return cls(order_N, np.array([0, *edges.tolist(), len(ordered_N)], dtype=np.int64)[: None if len(ordered_N) else 1])

    def __len__(self) -> int:
        return len(self.start_S) - 1


class Units:
    """One source cut into units that stay in one window: shards, or `parts` of each shard."""

    def __init__(self, shards: ShardSpans, parts: int, bucket_N: np.ndarray, buckets: int) -> None:
        self.shards, self.bucket_N = len(shards), bucket_N
        order_N, start_U = shards
        if parts > 1 and len(bucket_N):  # part p of a shard: its examples p, p + parts, ...
            size_S = np.diff(start_U)
            position_N = np.arange(len(bucket_N)) - np.repeat(start_U[:-1], size_S)
            unit_N = np.repeat(np.arange(len(shards)) * parts, size_S) + position_N % parts
            by_part = np.argsort(unit_N, kind="stable")
            order_N = by_part if order_N is None else order_N[by_part]
            sizes = np.bincount(unit_N)
            start_U = np.concatenate([[0], np.cumsum(sizes[sizes > 0])]).astype(np.int64)
        self._order_N = None if order_N is None else order_N.astype(np.int32 if len(order_N) < 2**31 else np.int64)
        self._start_U = start_U
        self.count_UK = np.zeros((len(self), buckets), dtype=np.int32)
        for first in range(0, len(self), UNITS_AT_A_TIME):
            last = min(first + UNITS_AT_A_TIME, len(self))
            unit = np.repeat(np.arange(last - first), np.diff(start_U[first : last + 1]))
            cell = unit * buckets + bucket_N[self.examples(np.arange(first, last))]
            self.count_UK[first:last] = np.bincount(cell, minlength=(last - first) * buckets).reshape(last - first, buckets)

    def __len__(self) -> int:
        return len(self._start_U) - 1

    def examples(self, unit_V: np.ndarray) -> np.ndarray:
        """Example numbers of some units, int64, in the order of the units."""
        position_X = ranges(self._start_U[unit_V], self._start_U[unit_V + 1] - self._start_U[unit_V])
        return position_X if self._order_N is None else self._order_N[position_X].astype(np.int64)


class _Examples(NamedTuple):
    """Examples grouped by bucket, in order of arrival within a bucket."""

    source_X: np.ndarray
    index_X: np.ndarray
    count_K: np.ndarray

    def last(self, take_K: np.ndarray) -> _Examples:
        """The last `take_K` of each bucket."""
        spot_X = ranges(np.cumsum(self.count_K) - take_K, take_K)
        return _Examples(self.source_X[spot_X], self.index_X[spot_X], take_K)

    def then(self, later: _Examples) -> _Examples:
        """These examples followed by `later`, bucket by bucket."""
        parts = (self, later)
        bucket_X = np.concatenate([np.repeat(np.arange(len(part.count_K), dtype=np.uint16), part.count_K) for part in parts])
        order_X = np.argsort(bucket_X, kind="stable")
        source_X, index_X = (np.concatenate([part[i] for part in parts])[order_X] for i in (0, 1))
        return _Examples(source_X, index_X, self.count_K + later.count_K)


class Dealing(NamedTuple):
    """How micro-batches become steps: M of them each, of like cost."""

    M: int
    cost: Cost


@dataclass(frozen=True, slots=True)
class Window:
    """The micro-batches of a window: b holds items start_B[b] .. end_B[b] - 1, each being `index_X` of source `source_X`."""

    source_X: np.ndarray
    index_X: np.ndarray
    start_B: np.ndarray
    end_B: np.ndarray
    waiting: _Examples
    """left over for the next window"""


class EpochOutline:
    """The counts of an epoch: which units each window gets and how many micro-batches it emits, before examples are ordered."""

    def __init__(
        self, passes: Sequence[range], units: Sequence[Units], seeds: Sequence[Sequence[int]], buckets: Buckets, block: float
    ) -> None:
        """passes: pass numbers per source; seeds: one per pass; block: shards per window."""
        self.windows = max(1, round(sum(len(pass_numbers) * each.shards for pass_numbers, each in zip(passes, units, strict=True)) / block))
        self._unit_V: list[np.ndarray] = []
        self._start_W: list[np.ndarray] = []
        count_WK = np.zeros((self.windows + 1, len(buckets.capacity_K)), dtype=np.int64)
        for pass_seeds, source_units in zip(seeds, units, strict=True):
            unit_V = np.concatenate([permutation(len(source_units), seed) for seed in pass_seeds] or [np.empty(0, np.int64)])
            # Visit i of n is at (i + 1/2) / n of the epoch; window w covers [w, w + 1) / windows.
            window_V = (2 * np.arange(len(unit_V)) + 1) * self.windows // max(1, 2 * len(unit_V))
            start_W = np.searchsorted(window_V, np.arange(self.windows + 1))
            self._unit_V.append(unit_V)
            self._start_W.append(start_W)
            for window in range(self.windows):
                count_WK[window + 1] += source_units.count_UK[unit_V[start_W[window] : start_W[window + 1]]].sum(axis=0)
        self.before_WK = np.cumsum(count_WK, axis=0)
        """examples of each bucket in the windows before w"""
        self.groups = buckets.leftovers(self.before_WK[-1] % buckets.capacity_K)
        self.done_W = (self.before_WK // buckets.capacity_K).sum(axis=1)
        """micro-batches emitted before window w; the last entry is the total of the epoch"""
        self.done_W[-1] += len(self.groups)

    def units(self, source: int, window: int) -> np.ndarray:
        """Units of a source in a window, in order."""
        return self._unit_V[source][self._start_W[source][window] : self._start_W[source][window + 1]]


class EpochWindows:
    """Plans windows of any epoch on demand and caches the last few. Thread-safe."""

    def __init__(
        self, seed: int, contents: Sequence[str], units: Sequence[Units], buckets: Buckets, block: float, dealing: Dealing
    ) -> None:
        """contents: one digest per source, on which the order depends; block: shards per window."""
        self._seed, self._contents, self._units, self._buckets, self._block = seed, list(contents), units, buckets, block
        self._dealing = dealing
        self._outlines = lru_cache(maxsize=EPOCHS_KEPT)(self._outline)
        self._windows: OrderedDict[tuple[int, int], Window] = OrderedDict()
        self._lock = RLock()

    def outline(self, epoch: int, passes: tuple[range, ...]) -> EpochOutline:
        """The counts of an epoch with these pass numbers per source."""
        return self._outlines(epoch, passes)

    def _outline(self, epoch: int, passes: tuple[range, ...]) -> EpochOutline:
        # `number` counts too: the same column in two streams has two orders.
        seeds = [
            [derive(self._seed, "shards", number, pass_number, content) for pass_number in passes[number]]
            for number, content in enumerate(self._contents)
        ]
        return EpochOutline(passes, self._units, seeds, self._buckets, self._block)

    def window(self, outline: EpochOutline, epoch: int, window: int) -> Window:
        """The micro-batches of one window of an epoch."""
        with self._lock:
            emitted = self._windows.get((epoch, window)) or self._emit(outline, epoch, window)
            self._windows[epoch, window] = emitted
            self._windows.move_to_end((epoch, window))
            if len(self._windows) > WINDOWS_KEPT:
                self._windows.popitem(last=False)
            return emitted

    def _emit(self, outline: EpochOutline, epoch: int, window: int) -> Window:
        capacity_K = self._buckets.capacity_K
        came = self._waiting(outline, epoch, window).then(self._shuffled(outline, epoch, window))
        full_K = came.count_K // capacity_K
        size = np.repeat(capacity_K, full_K)
        start = np.repeat(np.cumsum(came.count_K) - came.count_K, full_K) + ranges(np.zeros_like(full_K), full_K) * size
        waiting = came.last(came.count_K % capacity_K)
        source_X, index_X = came.source_X, came.index_X
        if window == outline.windows - 1:  # leftovers go last, where the buckets of a group are adjacent
            group = [int(waiting.count_K[buckets].sum()) for buckets in outline.groups]
            start = np.concatenate([start, len(index_X) + np.cumsum([0, *group])[:-1]]).astype(np.int64)
            size = np.concatenate([size, group]).astype(np.int64)
            source_X, index_X = np.concatenate([source_X, waiting.source_X]), np.concatenate([index_X, waiting.index_X])
        bucket_X = np.concatenate([np.repeat(np.arange(len(capacity_K)), part.count_K) for part in (came, waiting)])[: len(index_X)]
        cost_B = self._cost(bucket_X, start, start + size)
        keys = (random_keys(len(start), derive(self._seed, name, epoch, window, *self._contents)) for name in ("batches", "steps"))
        order_B = in_steps(cost_B, int(outline.done_W[window]), self._dealing.M, *keys)
        return Window(source_X, index_X, start[order_B], (start + size)[order_B], waiting)

    def _cost(self, bucket_X: np.ndarray, start_B: np.ndarray, end_B: np.ndarray) -> np.ndarray:
        """Of each micro-batch, by the lengths of its buckets: one bucket, or at the end of an epoch a few that are adjacent."""
        buckets = self._buckets
        if not len(start_B):
            return np.zeros(0)
        rows_X = np.concatenate([[0], np.cumsum(buckets.size_K[bucket_X])])
        first_B, last_B = bucket_X[start_B], bucket_X[end_B - 1]
        seconds_B, tokens_B = (np.maximum(of_K[first_B], of_K[last_B]) for of_K in (buckets.seconds_K, buckets.tokens_K))
        return self._dealing.cost.of(rows_X[end_B] - rows_X[start_B], end_B - start_B, seconds_B, tokens_B)

    def _shuffled(self, outline: EpochOutline, epoch: int, window: int) -> _Examples:
        """The examples of a window, shuffled, then grouped by bucket."""
        index = [each.examples(outline.units(number, window)) for number, each in enumerate(self._units)]
        source_X = np.repeat(np.arange(len(index), dtype=np.int32), [len(part) for part in index])
        bucket_X = np.concatenate([each.bucket_N[part] for each, part in zip(self._units, index, strict=True)])
        shuffle = permutation(len(source_X), derive(self._seed, "examples", epoch, window, *self._contents))
        order_X = shuffle[np.argsort(bucket_X[shuffle], kind="stable")]
        count_K = np.bincount(bucket_X, minlength=len(self._buckets.capacity_K))
        return _Examples(source_X[order_X], np.concatenate(index)[order_X], count_K)

    def _waiting(self, outline: EpochOutline, epoch: int, window: int) -> _Examples:
        """Examples left over from earlier windows: cached with the previous window, or gathered from as few earlier windows as needed."""
        kept = self._windows.get((epoch, window - 1))
        if kept is not None:
            return kept.waiting
        wanted_K = outline.before_WK[window] % self._buckets.capacity_K
        gathered = _Examples(np.empty(0, np.int32), np.empty(0, np.int64), np.zeros_like(wanted_K))
        while (gathered.count_K < wanted_K).any():
            window -= 1
            take_K = np.minimum(wanted_K - gathered.count_K, outline.before_WK[window + 1] - outline.before_WK[window])
            if take_K.any():
                gathered = self._shuffled(outline, epoch, window).last(take_K).then(gathered)
        return gathered


def ranges(start_K: np.ndarray, count_K: np.ndarray) -> np.ndarray:
    """Concatenated ranges start_K[k], ..., start_K[k] + count_K[k] - 1; int64."""
    end_K = np.cumsum(count_K)
    within = np.arange(int(end_K[-1]) if len(end_K) else 0) - np.repeat(end_K - count_K, count_K)
    return np.repeat(start_K, count_K) + within


def permutation(count: int, seed: int) -> np.ndarray:
    """A permutation of 0 .. count - 1."""
    return np.argsort(random_keys(count, seed), kind="stable")


def random_keys(count: int, seed: int) -> np.ndarray:
    """Random uint64 [count]. Philox's raw output never changes; numpy's shuffles may."""
    keys: np.ndarray = np.random.Philox(key=seed).random_raw(count) if count else np.empty(0, dtype=np.uint64)
    return keys
