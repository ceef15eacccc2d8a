"""The training order as a pure function of (seed, epoch, digests, position): any step can be resumed on any number of ranks.

An epoch is a sequence of windows. In each pass over a source its shards are permuted and spread evenly over the windows, about
`block_shards` per window, so that reads stay local. A source with few shards is spread in parts of shards, so that small sources cover
the epoch as large ones do. Within a window, examples are shuffled and sorted into length buckets (plan/buckets.py). A bucket that holds a
full micro-batch emits it; the rest waits for the next window. The turns of a clip stay together (plan/turns.py). A global step is the
next M micro-batches, which cost alike (plan/balance.py); the last step of an epoch is filled up with empty ones.

The number of micro-batches per window follows from counts, so any step of any epoch is found without planning the steps before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.files import digest
from speechkd.data.plan.balance import STEPS_IN_A_WINDOW, Cost
from speechkd.data.plan.buckets import CHUNK, Buckets, Budget, Lengths, make_buckets
from speechkd.data.plan.turns import items_of
from speechkd.data.plan.windows import Dealing, EpochOutline, EpochWindows, ShardSpans, Units

ORDER = 3
"""Version of the order: another one deals the same examples out otherwise"""
MOST_BUCKETS = 256
BATCHES_PER_BUCKET = 2
"""At least so many per epoch: more buckets pad less, but leave more half-filled micro-batches at the end of the epoch"""


class PlanConfig(Config):
    """The budget of a micro-batch, and how many make a step. A clip over budget gets a micro-batch of its own, an answer over
    budget is left out of training."""

    micro_batches: int = Field(ge=1)
    """M per global step; every world size that divides M sees the same steps"""
    max_examples: int = Field(ge=1)
    max_seconds: float = Field(gt=0)
    """audio including padding: clips x longest clip"""
    max_tokens: int = Field(ge=1)
    """text including padding: examples x longest text"""
    block_shards: int = Field(default=8, ge=1)

    def per_rank(self, world: int) -> int:
        """M / world. Raises InputError naming the nearest world sizes that fit."""
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
    """Examples of one column in one stream. Arrays are [N]. `shard_N` need not be sorted: only equality matters."""

    stream: str
    digest: str
    """digest of base shards and column"""
    shard_N: np.ndarray
    seconds_N: np.ndarray
    tokens_N: np.ndarray
    passes: float = 1.0
    """passes per epoch; 0.5 visits every example once in two epochs"""
    row_N: np.ndarray | None = None
    """ExampleRef.row of each example; None: 0 .. N-1"""
    clip_N: np.ndarray | None = None
    """number of each example's clip: neighbours with the same one are dealt together; None: no two are of one clip"""

    def __len__(self) -> int:
        return len(self.shard_N)

    def row(self, index: int) -> int:
        """ExampleRef.row of example number `index`."""
        return index if self.row_N is None else int(self.row_N[index])

    def keep(self, keep_X: np.ndarray) -> PlanSource:
        """Only the examples whose row (of the column's X rows) is True in `keep_X`; rows keep their numbers."""
        row_N = np.arange(len(self)) if self.row_N is None else self.row_N
        kept_N = keep_X[row_N]
        parts = {name: getattr(self, name)[kept_N] for name in ("shard_N", "seconds_N", "tokens_N")}
        parts["clip_N"] = None if self.clip_N is None else self.clip_N[kept_N]
        return replace(self, row_N=row_N[kept_N], **parts)

    def content_digest(self) -> str:
        """sha256 of everything that the order depends on; the same for any integer or float dtype."""
        hasher = hashlib.sha256()
        for start in range(0, len(self), CHUNK):
            end = min(start + CHUNK, len(self))
            row_N = np.arange(start, end) if self.row_N is None else self.row_N[start:end]
            parts = (
                (self.shard_N[start:end], "<i8"),
                (self.seconds_N[start:end], "<f8"),
                (self.tokens_N[start:end], "<i8"),
                (row_N, "<i8"),
                (np.zeros(0) if self.clip_N is None else self.clip_N[start:end], "<i8"),
            )
            for values, kind in parts:
                hasher.update(np.ascontiguousarray(values, dtype=kind).data)
        return digest([self.stream, self.digest, str(Fraction(str(self.passes))), len(self), hasher.hexdigest()])


class Plan:
    """The examples in every micro-batch of every global step. The state of a run is the global step and `digest`.

    Memory: the arrays of `sources`, plus four bytes per example (eight if shards are not sorted).
    """

    def __init__(self, config: PlanConfig, sources: list[PlanSource], seed: int, cost: Cost | None = None) -> None:
        """`cost`: of a micro-batch in the model that is trained.

        Raises InputError if there are no examples, or if a source has `passes` <= 0.
        """
        self.config, self.sources, self.seed, self.cost = config, sources, seed, cost or Cost()
        for source in sources:
            if not source.passes > 0:
                raise InputError(f"passes of stream `{source.stream}` must be above 0, given {source.passes}")
        if not any(len(source) for source in sources):
            raise InputError("the plan has no examples: see data.corpora.train_splits, gates and train.regimes")
        contents = [source.content_digest() for source in sources]
        self.digest: str = digest(
            {"config": config.model_dump(mode="json"), "sources": contents, "seed": seed, "order": ORDER, "cost": list(self.cost)}
        )
        self._budget = Budget(config.max_examples, config.max_seconds, config.max_tokens)
        self._items = [items_of(s.clip_N, np.asarray(s.shard_N), s.seconds_N, s.tokens_N, self._budget) for s in sources]
        self.buckets, self._units, block = self._prepare()
        dealing = Dealing(config.micro_batches, self.cost)
        self._windows = EpochWindows(seed, contents, self._units, self.buckets, block, dealing)
        self._passes = [Fraction(str(source.passes)) for source in sources]
        self._passes_of = lru_cache(maxsize=1024)(self._pass_numbers)
        self._steps: dict[tuple[int, ...], int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"config": self.config, "sources": self.sources, "seed": self.seed, "cost": self.cost}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _prepare(self) -> tuple[Buckets, list[Units], float]:
        """Buckets, units, and shards per window."""
        config = self.config
        lengths = [
            Lengths(items.seconds_I, items.tokens_I, None if items.start_I is None else items.size_I, max(1, round(1000 * source.passes)))
            for items, source in zip(self._items, self.sources, strict=True)
        ]
        shards = [ShardSpans.from_shard_numbers(items.shard_I) for items in self._items]
        visited = sum(len(spans) * source.passes for spans, source in zip(shards, self.sources, strict=True))
        batches = self._fewest_batches()
        block = max(float(config.block_shards), visited * STEPS_IN_A_WINDOW * config.micro_batches / batches)
        windows = max(1, round(visited / block))
        most = int(min(MOST_BUCKETS, batches / windows / 2, batches / BATCHES_PER_BUCKET))
        buckets = make_buckets(lengths, self._budget, max(1, most))
        units = []
        for source, spans, bucket_N in zip(self.sources, shards, buckets.of_source, strict=True):
            parts = -(-windows // max(1, len(spans) * max(1, int(source.passes))))
            units.append(Units(spans, parts, bucket_N, len(buckets.capacity_K)))
        return buckets, units, block

    def _fewest_batches(self) -> float:
        """Micro-batches of an epoch if every one were filled to the budget."""
        config, total = self.config, 0.0
        for source in self.sources:
            for start in range(0, len(source), CHUNK):
                span = slice(start, start + CHUNK)
                share = np.maximum(source.seconds_N[span] / config.max_seconds, source.tokens_N[span] / config.max_tokens)
                total += source.passes * float(np.cumsum(np.clip(share, 1 / config.max_examples, 1))[-1])
        return total

    def steps_per_epoch(self, epoch: int) -> int:
        """Global steps of epoch `epoch`; differs between epochs only if some `passes` is not an integer."""
        pass_counts = tuple(map(len, self._passes_of(epoch)))
        if pass_counts not in self._steps:
            capacity_K = self.buckets.capacity_K
            count_K = np.zeros(len(capacity_K), dtype=np.int64)
            for visits, units in zip(pass_counts, self._units, strict=True):
                count_K += visits * units.count_UK.sum(axis=0, dtype=np.int64)
            batches = int((count_K // capacity_K).sum()) + len(self.buckets.leftovers(count_K % capacity_K))
            self._steps[pass_counts] = -(-batches // self.config.micro_batches)
        return self._steps[pass_counts]

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step within it) of a global step."""
        epoch = 0
        while step >= self.steps_per_epoch(epoch):
            step -= self.steps_per_epoch(epoch)
            epoch += 1
        return epoch, step

    def step(self, step: int) -> list[list[ExampleRef]]:
        """The M micro-batches of global step `step`."""
        return self.micro_batches(*self.position(step), range(self.config.micro_batches))

    def indices(self, rank: int, world: int) -> range:
        """Which of a step's M micro-batches rank `rank` takes. Raises InputError if M is not divisible by `world`."""
        share = self.config.per_rank(world)
        return range(rank * share, (rank + 1) * share)

    def share(self, step: int, rank: int, world: int) -> list[list[ExampleRef]]:
        """Rank `rank`'s M / world micro-batches of global step `step`."""
        return self.micro_batches(*self.position(step), self.indices(rank, world))

    def micro_batches(self, epoch: int, step: int, numbers: range) -> list[list[ExampleRef]]:
        """Some of the M micro-batches of a step of an epoch."""
        outline = self._windows.outline(epoch, self._passes_of(epoch))
        first = step * self.config.micro_batches
        return [self._micro_batch(outline, epoch, first + number) for number in numbers]

    def _micro_batch(self, outline: EpochOutline, epoch: int, number: int) -> list[ExampleRef]:
        if number >= outline.done_W[-1]:
            return []
        window = int(np.searchsorted(outline.done_W, number, side="right")) - 1
        emitted = self._windows.window(outline, epoch, window)
        batch = number - int(outline.done_W[window])
        span = slice(emitted.start_B[batch], emitted.end_B[batch])
        pairs = zip(emitted.source_X[span].tolist(), emitted.index_X[span].tolist(), strict=True)
        return [ExampleRef(source, self.sources[source].row(n)) for source, item in pairs for n in self._items[source].examples(item)]

    def _pass_numbers(self, epoch: int) -> tuple[range, ...]:
        """For each source, the numbers of the passes in this epoch, counted from the start of training."""
        return tuple(range(int(epoch * passes), int((epoch + 1) * passes)) for passes in self._passes)
