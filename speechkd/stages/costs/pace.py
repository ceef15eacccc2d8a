"""Seconds of a training step: from a run of the same recipe, from a few steps run here, or from FLOPs at a stated utilisation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from speechkd.core.errors import InputError
from speechkd.recipe import Recipe
from speechkd.stages.run_folder import RECIPE, run_recipe
from speechkd.stages.train import train
from speechkd.tracking import TrackingConfig
from speechkd.tracking.journal import JOURNAL, Record, read_journal
from speechkd.train.config import Phase, TrainConfig

STEP, CHECKPOINT, RANKS = "train/step_seconds", "checkpoint/seconds", "ranks"
MEASURED_STEPS = 12
WARM_UP = 2
"""Steps that are left out: caches are cold, and on a GPU kernels are chosen"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What training takes."""

    step_s: float
    start_s: float
    """from the command to the first step: loading weights, opening shards"""
    end_s: float
    """after the last step: the last checkpoint, and ranks that leave"""
    checkpoint_s: float
    basis: str

    def train_s(self, steps: int, checkpoints: int) -> float:
        """Of a whole run; `checkpoints` besides the last."""
        return self.start_s + steps * self.step_s + checkpoints * self.checkpoint_s + self.end_s

    def on(self, ranks: int, others: int) -> Pace:
        """Of `others` ranks, measured on `ranks`: a rank's share of a step's micro-batches grows or shrinks, a micro-batch does not."""
        if ranks == others:
            return self
        basis = f"{self.basis}, scaled from {ranks} to {others} ranks"
        return replace(self, step_s=self.step_s * ranks / others, basis=basis)


def recorded_pace(recipe: Recipe, ranks: int) -> Pace | None:
    """Of the recipe's own run, where its folder has one that trains the same student; None otherwise."""
    folder = recipe.run_dir
    if not (folder / RECIPE).is_file() or not (folder / JOURNAL).is_file():
        return None
    try:
        if run_recipe(folder).digest() != recipe.digest():
            return None
    except InputError:
        return None
    return journal_pace(folder / JOURNAL, f"measured in `{folder}`", ranks)


def measured_pace(recipe: Recipe, ranks: int) -> Pace:
    """Of a few real steps of the recipe, run here on `ranks` processes in a temporary folder. Raises InputError where it cannot train."""
    with tempfile.TemporaryDirectory(prefix="speechkd-plan-") as name:
        folder = Path(name) / recipe.name
        short = _shortened(recipe, name)
        code = train(short, ranks)
        if code:
            raise InputError(f"the steps that should be measured ended with code {code}: run `speechkd train` to see why")
        pace = journal_pace(folder / JOURNAL, f"{MEASURED_STEPS} steps measured here on {ranks} ranks", ranks)
    assert pace is not None, "a run that ended well has journalled its steps"
    return pace


def _shortened(recipe: Recipe, runs: str) -> Recipe:
    """The recipe with its first phase alone, cut short, saving once in the middle and at the end, and telling nobody."""
    first = recipe.train.phases[0]
    phase = Phase(name=first.name, steps=MEASURED_STEPS, mix=first.mix)
    config = recipe.train
    cut = TrainConfig(
        **{
            **config.model_dump(),
            "regimes": {config.regime: [phase.model_dump()], **{k: v for k, v in config.regimes.items() if k != config.regime}},
            "log_every": 1,
            "checkpoint_every": MEASURED_STEPS // 2,
        }
    )
    return recipe.model_copy(update={"runs": runs, "train": cut, "tracking": TrackingConfig(uri=None)})


def journal_pace(path: Path, basis: str, ranks: int) -> Pace | None:
    """From the latest start that a journal holds whole; None where it has fewer than two intervals."""
    start: list[Record] = []
    whole: list[Record] | None = None
    trained_on = ranks
    for record in read_journal(path):
        if record["kind"] == "status" and record["status"] == "RUNNING":
            start = []
        if record["kind"] == "tags" and str(record["values"].get(RANKS, "")).isdigit():
            trained_on = int(record["values"][RANKS])
        start.append(record)
        if record["kind"] == "status" and record["status"] != "RUNNING":
            whole = start if _steps(start) or whole is None else whole
    pace = _pace(whole or start, basis)
    return None if pace is None else pace.on(trained_on, ranks)


def _steps(records: list[Record]) -> list[tuple[int, float]]:
    """(step, second at which it was journalled) of a start's training metrics."""
    return [(r["step"], r["time_ms"] / 1000) for r in records if r["kind"] == "metric" and "train/loss" in r["values"]]


def _pace(records: list[Record], basis: str) -> Pace | None:
    points = _steps(records)
    if len(points) < 3:
        return None
    rates = [(after - before) / (step - earlier) for (earlier, before), (step, after) in zip(points, points[1:])]
    told = [float(r["values"][STEP]) for r in records if r["kind"] == "metric" and STEP in r["values"]]
    saved = [float(r["values"][CHECKPOINT]) for r in records if r["kind"] == "metric" and CHECKPOINT in r["values"]]
    step_s = median(rates[min(WARM_UP, len(rates) - 1) :])
    if len(told) > WARM_UP:
        step_s = median(told[WARM_UP:])
    first, (step, time) = records[0]["time_ms"] / 1000, points[0]
    end_s = records[-1]["time_ms"] / 1000 - points[-1][1]
    longest = max(rates) - step_s
    checkpoint_s = median(saved) if saved else min(max(0.0, longest), max(0.0, end_s))
    return Pace(
        step_s=step_s, start_s=max(0.0, time - first - step * step_s), end_s=max(0.0, end_s), checkpoint_s=checkpoint_s, basis=basis
    )


def estimated_pace(flops: float, tflops: float, mfu: float, checkpoint: int, frozen: float) -> Pace:
    """From a rank's FLOPs of a step. Weights are taken to load, and checkpoints to be written, at one GB/s."""
    basis = f"estimated at MFU {mfu:.2f} of {tflops:g} TFLOP/s"
    seconds = checkpoint / 1e9
    return Pace(step_s=flops / (tflops * 1e12 * mfu), start_s=60 + frozen / 1e9, end_s=seconds, checkpoint_s=seconds, basis=basis)
