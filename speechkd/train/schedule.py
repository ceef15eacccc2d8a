"""Phases of a regime as one sequence of global steps: (step, rank, world) -> the examples of this rank's micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from speechkd.core.files import digest
from speechkd.core.types import Batch
from speechkd.data.plan.plan import ExampleRef, Plan
from speechkd.train.config import Phase
from speechkd.train.prefetch import in_order


@dataclass(frozen=True, slots=True)
class Segment:
    """One phase with its plan; `sources[i]` is what a plan's source number i stands for."""

    phase: Phase
    plan: Plan
    sources: Sequence[int]


class Schedule:
    """The plan of a whole run. Its state is one integer, the global step.

    `grown_at`: the global step from which on the plans hold, because the data grew there; a new epoch begins at it. What the epoch before
    had shown until then comes again, once, in this one; from there on every pass visits every example exactly once, as ever.
    """

    def __init__(self, segments: Sequence[Segment], grown_at: int = 0) -> None:
        self.segments, self.grown_at = list(segments), grown_at
        self.steps = sum(segment.phase.steps for segment in self.segments)
        self.digest = digest([[s.phase.name, s.phase.steps, s.plan.digest, list(s.sources)] for s in self.segments])

    def locate(self, step: int) -> tuple[Segment, int]:
        """The segment of a global step and the step within it."""
        for segment in self.segments:
            if step < segment.phase.steps:
                return segment, step
            step -= segment.phase.steps
        raise IndexError("step past the last phase")

    def indices(self, step: int, rank: int, world: int) -> range:
        """Which of a global step's M micro-batches a rank takes. Raises InputError if `world` ranks cannot take equal shares."""
        return self.locate(step)[0].plan.indices(rank, world)

    def micro_batch(self, step: int, number: int) -> list[ExampleRef]:
        """Micro-batch `number` of the M of a global step, in terms of the run's own source numbers."""
        assert step >= self.grown_at, "the plan of the steps before belongs to the data as they were"
        segment, local = self.locate(step)
        before = max(0, self.grown_at - (step - local))  # steps of this phase that the earlier data had
        epoch, step_in_epoch = segment.plan.position(local - before)
        (refs,) = segment.plan.micro_batches(epoch, step_in_epoch, range(number, number + 1))
        return [ExampleRef(segment.sources[ref.source], ref.row) for ref in refs]

    def share(self, step: int, rank: int, world: int) -> list[list[ExampleRef]]:
        """A rank's micro-batches of a global step."""
        return [self.micro_batch(step, number) for number in self.indices(step, rank, world)]


@dataclass(frozen=True, slots=True)
class StepBatches:
    """One global step's batches for this rank, and how long the loop waited for them (seconds)."""

    step: int
    batches: list[Batch]
    waited: float


def feed(
    schedule: Schedule,
    load: Callable[[Sequence[ExampleRef]], Batch],
    rank: int,
    world: int,
    start: int,
    depth: int,
    workers: int = 1,
    most_bytes: int = 1 << 40,
) -> Iterator[StepBatches]:
    """Steps from `start` to the end, planned, read and collated by `workers` threads that stay at most `depth` steps ahead.

    `most_bytes` bounds the batches that wait (see `in_order`).
    The order is the schedule's, whatever the threads do; `load` must be safe to call from several at once. An exception in one (a digest
    that differs, say) is raised here, at the step that needs the data.
    """
    numbers = ((step, number) for step in range(start, schedule.steps) for number in schedule.indices(step, rank, world))
    ahead = depth * len(schedule.indices(0, rank, world))
    loaded = in_order(lambda number: load(schedule.micro_batch(*number)), numbers, workers, ahead, Batch.nbytes, most_bytes)
    try:
        for step in range(start, schedule.steps):
            began = monotonic()
            batches = [next(loaded) for _ in schedule.indices(step, rank, world)]
            yield StepBatches(step, batches, monotonic() - began)
    finally:
        loaded.close()
