"""The loss on held-out examples while a run trains: by task and language, exact over any number of ranks, without generating.

A fixed subset is cut into fixed batches of one group each; ranks share the batches, and sums and counts are added in float64. So every
number of ranks measures the same. The best step's checkpoint is kept beside the newest, and a run that no longer improves may stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from speechkd.core import dist
from speechkd.core.seeds import derive
from speechkd.core.types import Batch
from speechkd.data.plan.plan import ExampleRef
from speechkd.engine.wrap import Engine
from speechkd.train.config import HeldOutConfig
from speechkd.train.distiller import Distiller
from speechkd.train.history import History

LOSS = "held_out/loss"
Group = tuple[str, str]
"""(task, language) of examples; an empty language: the metadata names none"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a measurement means for the run."""

    improved: bool
    stops: bool


@dataclass(slots=True, kw_only=True)
class HeldOut:
    """Measures the held-out loss. Collective: every rank makes one and calls it at the same steps."""

    engine: Engine
    distiller: Distiller
    config: HeldOutConfig
    groups: Mapping[Group, Sequence[ExampleRef]]
    load: Callable[[Sequence[ExampleRef]], Batch]
    seed: int
    history: History
    record: Callable[[History], None]
    """called on rank 0 after every measurement"""
    _batches: list[tuple[int, Batch]] = field(default_factory=list)
    """(number of the group, batch) of this rank, loaded once"""

    def due(self, done: int, last: bool) -> bool:
        """Whether to measure after `done` steps."""
        return last or done % self.config.every == 0

    def measure(self, done: int) -> tuple[dict[str, float], Verdict]:
        """The losses after `done` steps by metric name, the same on every rank, and what they mean."""
        values = self.losses()
        before = self.history.best
        self.history.values = [value for value in self.history.values if value[0] < done] + [(done, values[LOSS])]
        improved = before is None or values[LOSS] < before[1]
        patience = self.config.patience
        stops = patience is not None and self.history.stale() >= patience
        self.history.stopped = done if stops else None
        if dist.rank() == 0:
            self.record(self.history)
        return values, Verdict(improved, stops)

    def losses(self) -> dict[str, float]:
        """`held_out/loss` over all examples, `held_out/TASK`, and `held_out/TASK_LANGUAGE` where a task has several languages."""
        names = list(self.groups)
        self._batches = self._batches or list(self._load())
        device, losses = self.engine.device, self.distiller.loss_weights()
        sums_GL2 = torch.zeros(len(names), len(losses), 2, dtype=torch.float64, device=device)
        self.engine.train(False)
        with torch.no_grad():
            for number, (group, batch) in enumerate(self._batches):
                torch.manual_seed(derive(self.seed, "held-out", dist.rank() + number * dist.world_size()))
                out = self.engine.forward(batch.to(device))
                sums_GL2[group] += torch.stack([torch.stack([loss.total.double(), loss.count.double()]) for loss in out.values()])
        self.engine.release()
        self.engine.train()
        dist.sum_over_ranks(sums_GL2)
        weights_L = torch.tensor(list(losses.values()), dtype=torch.float64, device=device)

        def loss_of(chosen: list[int]) -> float:
            total_L, count_L = sums_GL2[chosen].sum(0).T
            return float((weights_L * total_L / count_L.clamp_min(1.0)).sum())

        values = {LOSS: loss_of(list(range(len(names))))}
        for task in dict.fromkeys(task for task, _ in names):
            of_task = [number for number, name in enumerate(names) if name[0] == task]
            values[metric_name(task)] = loss_of(of_task)
            if len(of_task) > 1:
                values |= {metric_name(*names[number]): loss_of([number]) for number in of_task}
        return dist.from_rank_zero(values)

    def _load(self) -> list[tuple[int, Batch]]:
        """This rank's batches: every `world_size`-th, with empty ones at the end so that all ranks have as many (ZeRO-3)."""
        size, world = self.config.batch_size, dist.world_size()
        cut = [
            (number, list(refs[start : start + size]))
            for number, refs in enumerate(self.groups.values())
            for start in range(0, len(refs), size)
        ]
        cut += [(0, [])] * (-len(cut) % world)
        loaded = []
        for number, refs in cut[dist.rank() :: world]:
            batch = self.load(refs)
            batch.progress = 1.0  # schedules inside the student stand where they end, so that steps can be compared
            loaded.append((number, batch))
        return loaded


def metric_name(task: str, language: str = "") -> str:
    """`held_out/TASK_LANGUAGE`, in characters that MLflow takes."""
    return "held_out/" + re.sub(r"[^\w.\- ]", "-", f"{task}_{language}" if language else task)


def draw(examples: Mapping[Group, Sequence[tuple[str, ExampleRef]]], count: int) -> dict[Group, list[ExampleRef]]:
    """About `count` examples, the same at every call: in turn from each group, in the order of a hash of (name, example)'s name."""
    queues = {
        group: sorted(found, key=lambda item: (derive(0, "held-out", item[0]), item[0]))
        for group, found in sorted(examples.items())
        if found
    }
    share = max(1, count // max(1, len(queues)))
    left = count - sum(min(share, len(queue)) for queue in queues.values())
    out = {}
    for group, queue in queues.items():
        more = min(max(0, left), max(0, len(queue) - share))
        out[group] = [ref for _, ref in queue[: share + more]]
        left -= more
    return out
