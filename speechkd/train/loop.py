"""The step loop: one all-reduce of counts, M micro-batches, one optimiser step; save, report and stop at step boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from speechkd.core import dist
from speechkd.core.log import say
from speechkd.core.seeds import derive
from speechkd.core.types import Batch, LossOut
from speechkd.engine.wrap import Engine
from speechkd.kernels import dispatch
from speechkd.tracking.journal import Journal
from speechkd.tracking.metrics import Kind, Meter
from speechkd.train.config import TrainConfig
from speechkd.train.distiller import Distiller
from speechkd.train.optim import OptimConfig, learning_rate
from speechkd.train.preempt import PreemptionFlag
from speechkd.train.schedule import StepBatches
from speechkd.train.watchdog import Watchdog

TOPK_MASS = "teacher/topk_mass"
"""Mean probability that stored top-k rows keep: where it is low, much of the teacher is in the tail"""


class Outcome(Enum):
    """How a run left the loop."""

    FINISHED = "finished"
    PREEMPTED = "preempted"


class Diverged(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Everything one run needs; `run` does the steps that `step_batches` yields."""

    engine: Engine
    distiller: Distiller
    config: TrainConfig
    optim: OptimConfig
    seed: int
    steps: int
    device: torch.device
    journal: Journal | None
    """on rank 0"""
    save: Callable[[int], None]
    """called on every rank with the number of finished steps"""
    preemption: PreemptionFlag
    watchdog: Watchdog

    def run(self, step_batches: Iterator[StepBatches]) -> Outcome:
        """Train to the end or to a preemption, whichever comes first; saves in both cases."""
        meter = Meter(self._kinds(), self.device)
        for item in step_batches:
            step, enter = item.step, self.watchdog.enter
            meter.add("train/data_wait_ratio", item.waited)
            batches = [batch.to(self.device) for batch in item.batches]
            # One all-reduce a step: each loss's count over all ranks, and whether any rank got a signal to stop.
            counts = torch.stack([self.distiller.counts(batch) for batch in batches]).sum(0)
            enter(step, "all_reduce")
            global_counts = torch.cat([counts, counts.new_full((1,), float(self.preemption.raised))])
            dist.sum_over_ranks(global_counts)
            stop_flag = dist.ToHost(global_counts[-1:])
            self.engine.set_lr(learning_rate(self.optim, step, self.steps))
            for index, batch in enumerate(batches):
                batch.progress = step / self.steps
                torch.manual_seed(derive(self.seed, "micro-step", step, dist.rank() * len(batches) + index))
                enter(step, "forward")
                out = self.engine.forward(batch)
                enter(step, "backward")
                self.engine.backward(self._loss(out, global_counts[:-1]) * dist.world_size())
                enter(step, "optimizer")
                self.engine.step()
                self._measure(meter, out, batch)
            if self.engine.skipped_in_a_row >= self.config.max_nonfinite:
                raise Diverged(f"{self.engine.skipped_in_a_row} steps in a row had a non-finite loss or gradient (last: step {step})")
            done = step + 1
            enter(step, "device")
            # Before the forward of this step was queued, `stop_flag` was: reading it never drains the device.
            last, stop = done == self.steps, stop_flag.read()[0] > 0
            if self.journal is not None:
                self._tell_kernels(self.journal)
            enter(step, "report")
            if done % self.config.log_every == 0 or done == 1 or last or stop:
                self._report(meter, done)
            if last or stop or done % self.config.checkpoint_every == 0:
                enter(step, "checkpoint")
                self.save(done)
            if stop and not last:
                return Outcome.PREEMPTED
            enter(done, "data")
        return Outcome.FINISHED

    def _loss(self, out: dict[str, LossOut], counts: Tensor) -> Tensor:
        """Sum of w_i * total_i / count_i over the step's global counts; 0 / 0 (no such example in the step) is 0."""
        weights = self.distiller.loss_weights()
        parts = [
            weights[name] * loss.total / count.clamp_min(1.0).to(loss.total.dtype)
            for (name, loss), count in zip(out.items(), counts, strict=True)
        ]
        return torch.stack(parts).sum()

    def _kinds(self) -> dict[str, Kind]:
        """The metrics of an interval, the same on every rank whatever its batches hold."""
        rates = ("train/samples_per_s", "train/audio_seconds_per_s", "train/tokens_per_s", "train/data_wait_ratio")
        kinds: dict[str, Kind] = {f"train/loss_{name}": "mean" for name in self.distiller.losses}
        return kinds | {name: "rate" for name in rates} | {"train/padding_ratio": "mean", TOPK_MASS: "mean"}

    def _measure(self, meter: Meter, out: dict[str, LossOut], batch: Batch) -> None:
        for name, loss in out.items():
            meter.add(f"train/loss_{name}", loss.total, loss.count)
        real = batch.mask_BS.sum()
        meter.add("train/samples_per_s", batch.examples)
        meter.add("train/audio_seconds_per_s", batch.seconds)
        meter.add("train/tokens_per_s", real)
        meter.add("train/padding_ratio", batch.mask_BS.numel() - real, batch.mask_BS.numel())
        tail_T = batch.signals.tail_logp_T
        if tail_T is not None:
            stored_T = batch.mask_T & (tail_T < 0)  # rows of streams without such a signal hold zeros; some mass is always kept
            meter.add(TOPK_MASS, ((1 - tail_T.exp()) * stored_T).sum(), stored_T.sum())

    @staticmethod
    def _tell_kernels(journal: Journal) -> None:
        """Which implementations run, once for each: the first step that runs one says it, and MLflow keeps it."""
        for op, choice in dispatch.news():
            say(f"kernel {op}: {choice}")
            journal.tags({f"kernel.{op}": choice.name})

    def _report(self, meter: Meter, done: int) -> None:
        """Move the interval's sums off the device once, add them over ranks, and write them to the journal."""
        values = meter.drain()
        values["train/data_wait_ratio"] /= dist.world_size()
        values["train/loss"] = sum(weight * values.get(f"train/loss_{name}", 0.0) for name, weight in self.distiller.loss_weights().items())
        values["train/lr"] = learning_rate(self.optim, done - 1, self.steps)
        values["train/grad_norm"] = self.engine.grad_norm()
        values["train/skipped_steps"] = self.engine.skipped
        if self.journal is not None:
            self.journal.metrics(done, values)
