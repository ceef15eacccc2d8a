"""Phases of a regime as one sequence of global steps: (step, rank, world) -> the examples of this rank's micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Queue
from threading import Event, Thread
from time import monotonic

from speechkd.core.files import digest
from speechkd.core.types import Batch
from speechkd.data.plan import ExampleRef, Plan
from speechkd.train.config import Phase


@dataclass(frozen=True, slots=True)
class Segment:
    """One phase with its plan; `sources[i]` is what a plan's source number i stands for."""

    phase: Phase
    plan: Plan
    sources: Sequence[int]


class Schedule:
    """The plan of a whole run. Its state is one integer, the global step."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = list(segments)
        self.steps = sum(segment.phase.steps for segment in self.segments)
        self.digest = digest([[s.phase.name, s.phase.steps, s.plan.digest, list(s.sources)] for s in self.segments])

    def locate(self, step: int) -> tuple[Segment, int]:
        """The segment of a global step and the step within it."""
        for segment in self.segments:
            if step < segment.phase.steps:
                return segment, step
            step -= segment.phase.steps
        raise IndexError("step past the last phase")

    def share(self, step: int, rank: int, world: int) -> list[list[ExampleRef]]:
        """This rank's micro-batches of a global step, in terms of the run's own source numbers."""
        segment, local = self.locate(step)
        share = segment.plan.share(local, rank, world)
        return [[ExampleRef(segment.sources[ref.source], ref.row) for ref in micro] for micro in share]


@dataclass(frozen=True, slots=True)
class Fed:
    """One global step's batches for this rank, and how long the loop waited for them (seconds)."""

    step: int
    batches: list[Batch]
    waited: float


def feed(schedule: Schedule, load: Callable[[Sequence[ExampleRef]], Batch], rank: int, world: int, start: int, depth: int) -> Iterator[Fed]:
    """Steps from `start` to the end, read and collated by a background thread that stays at most `depth` steps ahead.

    An exception in the thread (a digest that differs, say) is raised here, at the step that needs the data.
    """
    queue: Queue[list[Batch] | BaseException] = Queue(maxsize=depth)
    stop = Event()

    def work() -> None:
        try:
            for step in range(start, schedule.steps):
                queue.put([load(refs) for refs in schedule.share(step, rank, world)])
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  (handed to the loop, which raises it)
            queue.put(error)

    Thread(target=work, name="feed", daemon=True).start()
    try:
        for step in range(start, schedule.steps):
            began = monotonic()
            item = queue.get()
            if isinstance(item, BaseException):
                raise item
            yield Fed(step, item, monotonic() - began)
    finally:
        stop.set()
        while not queue.empty():
            queue.get_nowait()
