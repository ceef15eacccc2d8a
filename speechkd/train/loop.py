"""The step loop: one all-reduce of counts, M micro-batches, one optimiser step; save, report and stop at step boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from time import monotonic

import torch
from torch import Tensor

from speechkd.core import dist
from speechkd.core.log import say
from speechkd.core.seeds import derive
from speechkd.core.types import Batch, LossOut
from speechkd.engine.checkpoint_saver import Saver
from speechkd.engine.wrap import Engine
from speechkd.kernels import dispatch
from speechkd.models.flops import ModelFlops
from speechkd.tracking.journal import Journal
from speechkd.tracking.metrics import Kind, Meter
from speechkd.train.config import TrainConfig
from speechkd.train.distiller import Distiller
from speechkd.train.held_out import HeldOut, Verdict
from speechkd.train.optim import OptimConfig, learning_rate
from speechkd.train.preempt import PreemptionFlag
from speechkd.train.profiler import StepProfiler
from speechkd.train.schedule import StepBatches
from speechkd.train.spikes import SpikeGuard
from speechkd.train.timing import BY_RANK, StepTimes
from speechkd.train.watchdog import Watchdog

FLOPS = "train/flops_per_s"
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
    """called on every rank with the number of finished steps; begins to save them"""
    saver: Saver
    """which `save` uses"""
    preemption: PreemptionFlag
    watchdog: Watchdog
    spikes: SpikeGuard | None = None
    held_out: HeldOut | None = None
    flops: ModelFlops | None = None
    """of the model, for `train/mfu`"""
    profiler: StepProfiler | None = None
    """on rank 0"""

    def run(self, step_batches: Iterator[StepBatches]) -> Outcome:
        """Train to the end or to a preemption, whichever comes first; saves in both cases."""
        meter = Meter(self._kinds(), self.device, BY_RANK)
        times = StepTimes(meter, self.device, self.config.peak_tflops)
        step_loss = _StepLoss(self.engine, self.spikes, self.device) if self.spikes is not None else None
        for item in step_batches:
            step, enter = item.step, self.watchdog.enter
            if self.profiler is not None:
                self.profiler.begin()
            gathered = self.engine.gathers()
            meter.add("train/data_wait_ratio", item.waited)
            times.begin(item.waited)
            batches = [batch.to(self.device) for batch in item.batches]
            # One all-reduce a step: each loss's count over all ranks, whether any rank got a signal to stop, whether a save has failed.
            counts = torch.stack([self.distiller.counts(batch) for batch in batches]).sum(0)
            enter(step, "all_reduce")
            flags = counts.new_tensor([float(self.preemption.raised), float(self.saver.failed())])
            global_counts = torch.cat([counts, flags])
            times.arrive()
            dist.sum_over_ranks(global_counts)
            flags_read = dist.ToHost(global_counts[-2:])
            self.engine.set_lr(learning_rate(self.optim, step, self.steps))
            for index, batch in enumerate(batches):
                batch.progress = step / self.steps
                torch.manual_seed(derive(self.seed, "micro-step", step, dist.rank() * len(batches) + index))
                enter(step, "forward")
                out = self.engine.forward(batch)
                enter(step, "backward")
                loss = self._loss(out, global_counts[:-2])
                self.engine.backward(loss * dist.world_size())
                enter(step, "optimizer")
                if step_loss is not None:
                    step_loss.add(loss, last=index == len(batches) - 1)
                self.engine.step()
                self._measure(meter, out, batch)
            times.end()
            meter.add("train/gathers", self.engine.gathers() - gathered, 1)
            if self.profiler is not None:
                self.profiler.end()
            if self.engine.skipped_in_a_row >= self.config.max_nonfinite:
                raise Diverged(f"{self.engine.skipped_in_a_row} steps in a row had a non-finite loss or gradient (last: step {step})")
            done = step + 1
            enter(step, "device")
            # Before the forward of this step was queued, the flags were: reading them never drains the device.
            last, (stop, save_failed) = done == self.steps, (flag > 0 for flag in flags_read.read())
            if save_failed:
                self.saver.finish()  # raises on every rank
            if self.journal is not None:
                self._tell_kernels(self.journal)
            enter(step, "report")
            if done % self.config.log_every == 0 or done == 1 or last or stop:
                self._report(meter, times, done)
            verdict = self._measure_held_out(done, last)
            if last or stop or verdict.improved or verdict.stops or done % self.config.checkpoint_every == 0:
                enter(step, "checkpoint")
                self.save(done)
                if last or stop or verdict.stops:
                    self.saver.finish()
                self._tell_saves()
            if verdict.stops:
                return Outcome.FINISHED
            if stop and not last:
                return Outcome.PREEMPTED
            enter(done, "data")
        return Outcome.FINISHED

    def _measure_held_out(self, done: int, last: bool) -> Verdict:
        """The held-out loss, where it is due, into the journal; the checkpoint of the best step stays."""
        if self.held_out is None or not self.held_out.due(done, last):
            return Verdict(improved=False, stops=False)
        self.watchdog.enter(done - 1, "held_out")
        began = monotonic()
        values, verdict = self.held_out.measure(done)
        if verdict.improved:
            self.saver.keep(done)
        if self.journal is not None:
            self.journal.metrics(done, values | {"held_out/seconds": monotonic() - began})
            if verdict.stops:
                say(f"train: stops after step {done}: {self.held_out.history.stale()} measurements without a better held-out loss")
        return verdict

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
        of_flops: dict[str, Kind] = {FLOPS: "rate"} if self.flops is not None else {}
        return (
            kinds
            | of_flops
            | {name: "rate" for name in rates}
            | dict.fromkeys(("train/padding_ratio", "train/useful_frames", "train/gathers", TOPK_MASS), "mean")
        )

    def _measure(self, meter: Meter, out: dict[str, LossOut], batch: Batch) -> None:
        for name, loss in out.items():
            meter.add(f"train/loss_{name}", loss.total, loss.count)
        real = batch.mask_BS.sum()
        meter.add("train/samples_per_s", batch.examples)
        meter.add("train/audio_seconds_per_s", batch.seconds)
        meter.add("train/tokens_per_s", real)
        meter.add("train/padding_ratio", batch.mask_BS.numel() - real, batch.mask_BS.numel())
        frames_C = batch.clips.frames_C
        meter.add(
            "train/useful_frames", frames_C.sum(), frames_C.numel() * self.distiller.student.encoder.hearing.frames_in(batch.features_BMT)
        )
        if self.flops is not None:
            meter.add(FLOPS, self.flops.of_batch(batch))
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

    def _tell_saves(self) -> None:
        """Journal the saves that were committed since the last call, at their own steps."""
        for save in self.saver.drain_times():
            if self.journal is not None:
                self.journal.metrics(save.step, {"checkpoint/seconds": save.seconds, "checkpoint/stall_seconds": save.stall_s})

    def _report(self, meter: Meter, times: StepTimes, done: int) -> None:
        """Move the interval's sums off the device once, add them over ranks, and write them to the journal."""
        times.before_drain()
        values = meter.drain()
        values |= times.values(values.pop(FLOPS, None), self.steps - done)
        values["train/data_wait_ratio"] /= dist.world_size()
        values["train/loss"] = sum(weight * values.get(f"train/loss_{name}", 0.0) for name, weight in self.distiller.loss_weights().items())
        values["train/lr"] = learning_rate(self.optim, done - 1, self.steps)
        values["train/grad_norm"] = self.engine.grad_norm()
        values["train/skipped_steps"] = self.engine.skipped
        if self.spikes is not None:
            values["train/spikes_skipped"] = self.spikes.dropped
        if self.journal is not None:
            self.journal.metrics(done, values)
        self._tell_saves()


class _StepLoss:
    """The loss of a whole step over all ranks, for the spike guard: one more all-reduce of one number a step, only where a guard is set.

    It is read where DeepSpeed reads the gradient's norm on the host, which it does before every update.
    """

    def __init__(self, engine: Engine, spikes: SpikeGuard, device: torch.device) -> None:
        self._sum = torch.zeros(1, dtype=torch.float64, device=device)
        self._read: dist.ToHost | None = None
        self._spikes = spikes
        engine.drop_when(self._drops)

    def add(self, loss: Tensor, last: bool) -> None:
        """This rank's part of a micro-batch; after the `last` of a step all ranks' parts are summed."""
        self._sum += loss.detach()
        if last:
            self._read = dist.ToHost(dist.sum_over_ranks(self._sum))
            self._sum = torch.zeros_like(self._sum)

    def _drops(self, norm: float) -> bool:
        assert self._read is not None, "the loss comes before the update"
        loss = self._read.read()[0]
        drops = self._spikes.drops(loss, norm)
        if drops and dist.rank() == 0:  # DeepSpeed calls it an overflow
            say(f"train: an update was dropped: loss {loss:.4g}, gradient norm {norm:.4g} (train.spike)")
        return drops
