"""The turns of a clip (questions about one recording) as one item of a plan, so that they share a micro-batch and an encoder pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speechkd.data.plan.buckets import Budget


@dataclass(frozen=True, slots=True)
class Items:
    """What is dealt out of one source: I runs of neighbouring examples of one clip. Item i is examples start_I[i] .. + size_I[i] - 1."""

    start_I: np.ndarray | None
    """None: every example is an item of its own"""
    size_I: np.ndarray
    """uint16"""
    shard_I: np.ndarray
    seconds_I: np.ndarray
    tokens_I: np.ndarray
    """of the longest answer"""

    def examples(self, item: int) -> range:
        """Numbers of an item's examples."""
        if self.start_I is None:
            return range(item, item + 1)
        first = int(self.start_I[item])
        return range(first, first + int(self.size_I[item]))


def items_of(clip_N: np.ndarray | None, shard_N: np.ndarray, seconds_N: np.ndarray, tokens_N: np.ndarray, budget: Budget) -> Items:
    """Neighbouring examples with the same number in `clip_N` are one item, in parts where the budget has no room for all of them.

    `clip_N` None: no two examples share a clip.
    """
    count = len(shard_N)
    ones = np.ones(count, dtype=np.uint16)
    if clip_N is None or not count:
        return Items(None, ones, shard_N, seconds_N, tokens_N)
    start_I = np.flatnonzero(np.concatenate([[True], (clip_N[1:] != clip_N[:-1]) | (shard_N[1:] != shard_N[:-1])]))
    if len(start_I) == count:
        return Items(None, ones, shard_N, seconds_N, tokens_N)
    size_I = np.diff(np.append(start_I, count))
    seconds_I, tokens_I = np.maximum.reduceat(seconds_N, start_I), np.maximum.reduceat(tokens_N, start_I)
    parts_I = -(-size_I // _room(seconds_I, tokens_I, budget))
    if (parts_I > 1).any():
        part_J = np.arange(int(parts_I.sum())) - np.repeat(np.cumsum(parts_I) - parts_I, parts_I)
        whole_J, of_J = np.repeat(size_I, parts_I), np.repeat(parts_I, parts_I)
        begins_J, ends_J = part_J * whole_J // of_J, (part_J + 1) * whole_J // of_J
        start_I, size_I = np.repeat(start_I, parts_I) + begins_J, ends_J - begins_J
        seconds_I, tokens_I = np.maximum.reduceat(seconds_N, start_I), np.maximum.reduceat(tokens_N, start_I)
    return Items(start_I, size_I.astype(np.uint16), shard_N[start_I], seconds_I, tokens_I)


def _room(seconds_I: np.ndarray, tokens_I: np.ndarray, budget: Budget) -> np.ndarray:
    """`Budget.capacity` of many at once, and at most what `Items.size_I` can hold."""
    wide_I = np.asarray(seconds_I, dtype=np.float64)
    by_seconds = np.floor(budget.seconds / np.maximum(wide_I, 1e-9)).clip(max=1 << 15).astype(np.int64)
    by_seconds -= by_seconds * wide_I > budget.seconds
    by_tokens = budget.tokens // np.maximum(np.asarray(tokens_I, dtype=np.int64), 1)
    return np.minimum(np.minimum(by_seconds, by_tokens), min(budget.examples, 1 << 15)).clip(min=1)
