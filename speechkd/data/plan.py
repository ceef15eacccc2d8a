"""The order of training, as a pure function of (seed, epoch, digests, position): nothing is streamed, so anything can be resumed anywhere.

In each pass over a source, shards are permuted and examples shuffled within blocks of `block_shards` shards, so that reading stays near.
Sources are merged in proportion, and the merged order is cut into windows. In a window, examples are sorted by length and cut into
micro-batches of a fixed budget, and the micro-batches are shuffled. A global step is the next M micro-batches; the last step of an epoch is
filled up with empty ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.files import digest
from speechkd.core.seeds import derive

EPOCHS_KEPT = 2


class PlanConfig(Config):
    """The fixed budget of a micro-batch and the number of them in a step. An example over budget is a micro-batch of its own."""

    micro_batches: int = Field(ge=1)
    """M, of a global step; every world size that divides it sees the same steps"""
    max_examples: int = Field(ge=1)
    max_seconds: float = Field(gt=0)
    """of audio, padding included: clips x the longest clip"""
    max_tokens: int = Field(ge=1)
    """of text, padding included: examples x the longest text"""
    block_shards: int = Field(default=8, ge=1)

    def per_rank(self, world: int) -> int:
        """M / world. Raises InputError naming the nearest worlds that fit."""
        count = self.micro_batches
        if 0 < world <= count and count % world == 0:
            return count // world
        fits = [n for n in range(1, count + 1) if count % n == 0]
        near = [*[n for n in fits if n < world][-1:], *[n for n in fits if n > world][:1]]
        allowed = ", ".join(map(str, fits))
        raise InputError(
            f"{world} ranks cannot share {count} micro-batches a step equally; allowed: {allowed}; nearest: "
            f"{' or '.join(map(str, near))} (plan.micro_batches)"
        )


class ExampleRef(NamedTuple):
    """One example: `row` of source number `source`."""

    source: int
    row: int


@dataclass(frozen=True, slots=True)
class PlanSource:
    """Examples of one column in one role. Arrays are [N]; `shard_N` is sorted or not, only its equality matters."""

    role: str
    digest: str
    """of base and column"""
    shard_N: np.ndarray
    seconds_N: np.ndarray
    tokens_N: np.ndarray
    passes: float = 1.0
    """per epoch; 0.5 visits every example once in two epochs"""
    row_N: np.ndarray | None = None
    """what ExampleRef.row says; 0 .. N-1 if not given"""

    def rows(self) -> np.ndarray:
        """int64 [N]."""
        return np.arange(len(self.shard_N)) if self.row_N is None else np.asarray(self.row_N, dtype=np.int64)

    def content_digest(self) -> str:
        """sha256 of everything that the order depends on."""
        hasher = hashlib.sha256()
        arrays = ((self.shard_N, "<i8"), (self.seconds_N, "<f8"), (self.tokens_N, "<i8"), (self.rows(), "<i8"))
        for array_N, kind in arrays:
            hasher.update(np.ascontiguousarray(array_N, dtype=kind).tobytes())
        return digest([self.role, self.digest, str(Fraction(str(self.passes))), len(self.shard_N), hasher.hexdigest()])


@dataclass(frozen=True, slots=True)
class _Epoch:
    """source_X, row_X: the epoch's visits in order; micro-batch b is visits [start_B[b], start_B[b + 1])."""

    source_X: np.ndarray
    row_X: np.ndarray
    start_B: np.ndarray


class Epoch:
    """The steps of one epoch: `len`, `[i]`, iteration."""

    def __init__(self, plan: _Epoch, micro_batches: int) -> None:
        self._plan, self._micro_batches = plan, micro_batches

    def __len__(self) -> int:
        return -(-(len(self._plan.start_B) - 1) // self._micro_batches)

    def __getitem__(self, step: int) -> list[list[ExampleRef]]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        first = step * self._micro_batches
        return [self._micro_batch(first + i) for i in range(self._micro_batches)]

    def __iter__(self) -> Iterator[list[list[ExampleRef]]]:
        return (self[step] for step in range(len(self)))

    def _micro_batch(self, number: int) -> list[ExampleRef]:
        plan = self._plan
        if number >= len(plan.start_B) - 1:
            return []
        span = slice(plan.start_B[number], plan.start_B[number + 1])
        return [ExampleRef(source, row) for source, row in zip(plan.source_X[span].tolist(), plan.row_X[span].tolist(), strict=True)]


class Plan:
    """Which examples each micro-batch of each global step holds. The state of a run is the global step and `digest`."""

    def __init__(self, config: PlanConfig, sources: list[PlanSource], seed: int) -> None:
        """Raises InputError if there is nothing to deal out, or a source is never visited."""
        self.config, self.sources, self.seed = config, sources, seed
        for source in sources:
            if not source.passes > 0:
                raise InputError(f"passes of role `{source.role}` must be above 0, given {source.passes}")
        if not any(len(source.shard_N) for source in sources):
            raise InputError("the plan has no examples")
        self._contents = [source.content_digest() for source in sources]
        self.digest: str = digest({"config": config.model_dump(mode="json"), "sources": self._contents, "seed": seed, "order": 1})
        self._planned = lru_cache(maxsize=EPOCHS_KEPT)(self._plan_epoch)
        self._steps: list[int] = []

    def __getstate__(self) -> dict[str, object]:
        return {"config": self.config, "sources": self.sources, "seed": self.seed}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def epoch(self, epoch: int) -> Epoch:
        """The steps of epoch `epoch`."""
        return Epoch(self._planned(epoch), self.config.micro_batches)

    def steps_per_epoch(self, epoch: int) -> int:
        """Global steps of epoch `epoch`; may differ from epoch to epoch (fractional passes, other packing)."""
        while len(self._steps) <= epoch:
            self._steps.append(len(self.epoch(len(self._steps))))
        return self._steps[epoch]

    def total_steps(self, epochs: int) -> int:
        """Global steps of the first `epochs` epochs."""
        return sum(self.steps_per_epoch(epoch) for epoch in range(epochs))

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step within it) of a global step."""
        epoch = 0
        while step >= self.steps_per_epoch(epoch):
            step -= self.steps_per_epoch(epoch)
            epoch += 1
        return epoch, step

    def step(self, step: int) -> list[list[ExampleRef]]:
        """The M micro-batches of global step `step`."""
        epoch, index = self.position(step)
        return self.epoch(epoch)[index]

    def indices(self, rank: int, world: int) -> range:
        """Which of a step's M micro-batches rank `rank` takes. Raises InputError if `world` ranks cannot take equal shares."""
        share = self.config.per_rank(world)
        return range(rank * share, (rank + 1) * share)

    def share(self, step: int, rank: int, world: int) -> list[list[ExampleRef]]:
        """Rank `rank`'s M / world micro-batches of global step `step`."""
        batches = self.step(step)
        return [batches[i] for i in self.indices(rank, world)]

    def _plan_epoch(self, epoch: int) -> _Epoch:
        streams = [self._stream(number, epoch) for number in range(len(self.sources))]
        length = [len(order) for order, _ in streams]
        windows = max(1, max(blocks for _, blocks in streams))
        source_X = np.repeat(np.arange(len(streams)), length)
        index_X = np.concatenate([order for order, _ in streams])
        # Visit i of n stands at (i + 1/2) / n of the epoch: small sources are spread over it as evenly as large ones.
        place_X = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in length])
        merged_X = np.argsort(place_X, kind="stable")
        source_X, index_X = source_X[merged_X], index_X[merged_X]
        seconds_X, tokens_X = np.empty(len(index_X)), np.empty(len(index_X), dtype=np.int64)
        row_X = np.empty(len(index_X), dtype=np.int64)
        for number, source in enumerate(self.sources):
            mine_X = source_X == number
            chosen = index_X[mine_X]
            seconds_X[mine_X] = np.asarray(source.seconds_N, dtype=np.float64)[chosen]
            tokens_X[mine_X] = np.asarray(source.tokens_N, dtype=np.int64)[chosen]
            row_X[mine_X] = source.rows()[chosen]
        bounds = np.linspace(0, len(index_X), windows + 1).astype(np.int64)
        order, sizes = [], []
        for window, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            if start == end:
                continue
            sorted_W = start + np.lexsort((tokens_X[start:end], seconds_X[start:end]))
            cuts = self._cut(seconds_X[sorted_W], tokens_X[sorted_W])
            batches = np.split(sorted_W, cuts)
            for index in _permutation(len(batches), derive(self.seed, "batches", epoch, window, *self._contents)):
                order.append(batches[index])
                sizes.append(len(batches[index]))
        order_X = np.concatenate(order) if order else np.empty(0, dtype=np.int64)
        start_B = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        return _Epoch(source_X[order_X], row_X[order_X], start_B)

    def _stream(self, number: int, epoch: int) -> tuple[np.ndarray, int]:
        """(indices of one source's visits in this epoch, how many blocks of shards they span)."""
        source = self.sources[number]
        passes = Fraction(str(source.passes))
        first, end = int(epoch * passes), int((epoch + 1) * passes)
        shard_N = np.asarray(source.shard_N, dtype=np.int64)
        names, shard_N = np.unique(shard_N, return_inverse=True)
        orders, blocks = [], 0
        for turn in range(first, end) if len(shard_N) else ():
            # `number` counts too: the same column in two roles has two orders.
            seed = derive(self.seed, "examples", number, turn, self._contents[number])
            rank_S = np.empty(len(names), dtype=np.int64)
            rank_S[_permutation(len(names), derive(seed, "shards"))] = np.arange(len(names))
            block_N = rank_S[shard_N] // self.config.block_shards
            orders.append(np.lexsort((_keys(len(shard_N), derive(seed, "within")), block_N)))
            blocks += int(block_N.max()) + 1
        return (np.concatenate(orders) if orders else np.empty(0, dtype=np.int64)), blocks

    def _cut(self, seconds_W: np.ndarray, tokens_W: np.ndarray) -> list[int]:
        """Where to cut a window, sorted by seconds, into micro-batches within budget: greedy, every one at least one example."""
        config, cuts, start = self.config, [], 0
        count_M = np.arange(1, config.max_examples + 1)
        while start < len(seconds_W):
            span = slice(start, start + config.max_examples)
            seconds_M = seconds_W[span]  # ascending: the last is the longest
            tokens_M = np.maximum.accumulate(tokens_W[span])
            count = count_M[: len(seconds_M)]
            over_M = (count * seconds_M > config.max_seconds) | (count * tokens_M > config.max_tokens)
            over_M[0] = False
            start += int(over_M.argmax()) if over_M.any() else len(seconds_M)
            cuts.append(start)
        return cuts[:-1]


def _keys(count: int, seed: int) -> np.ndarray:
    """`count` random uint64. The raw output of Philox is fixed for ever; numpy's own shuffles are not."""
    return np.random.Philox(key=seed).random_raw(count) if count else np.empty(0, dtype=np.uint64)


def _permutation(count: int, seed: int) -> np.ndarray:
    return np.argsort(_keys(count, seed), kind="stable")
