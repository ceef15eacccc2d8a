"""A real engine whose loss is NaN at twenty steps, stopped and resumed in the middle: `python -m tests.train.poisoned OUT`."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch

from speechkd.core.tensors import read_header, read_tensor
from speechkd.engine.checkpoint import MOMENTS, WEIGHTS, load_moments, load_weights, read_trainer
from speechkd.engine.checkpoint_saver import Retention, Saver
from speechkd.engine.ds_config import read_ds_config
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import init_distributed, local_device
from speechkd.tracking.journal import JOURNAL, Journal, metric_series
from speechkd.train.config import Phase, SpikeConfig, TrainConfig
from speechkd.train.loop import Loop
from speechkd.train.optim import OptimConfig
from speechkd.train.preempt import PreemptionFlag
from speechkd.train.schedule import StepBatches
from speechkd.train.spikes import SpikeGuard
from speechkd.train.watchdog import Watchdog
from tests.contracts.cases import CASES
from tests.contracts.tiny import batches, distiller_of

ROOT = Path(__file__).parents[2]
STEPS, STOPPED, POISONED, SPIKE = 60, 30, 20, 55


class Run:
    """One start of a run that saves every step and keeps everything."""

    def __init__(self, out: Path, resume: Path | None, poisoned: set[int]) -> None:
        self.case, self.poisoned, self.step = CASES["loss-topk_kl"], poisoned, 0
        self.distiller = distiller_of(self.case)
        if resume is not None:
            load_weights(self.distiller, resume)
        self.distiller.register_forward_hook(self.poison)
        self.engine = Engine(self.distiller, OptimConfig(lr=1e-3), read_ds_config(ROOT / "ds_configs/zero3_test.json"), 2, 1.0)
        self.start = load_moments(self.engine, resume) if resume is not None else 0
        self.saver = Saver(self.engine, out / "checkpoints", Retention(keep=1000))
        self.spikes = SpikeGuard(SpikeConfig(window=40))
        if resume is not None:
            counters = read_trainer(resume)["counters"]
            self.engine.skipped = counters["skipped"]
            self.spikes.restore(counters["spikes"])

    def poison(self, module: Any, inputs: Any, output: Any) -> Any:
        times = float("nan") if self.step in self.poisoned else 1e3 if self.step == SPIKE else 1.0
        return {name: loss._replace(total=loss.total * times) for name, loss in output.items()}

    def save(self, step: int) -> None:
        self.saver.begin(step, {"counters": {"skipped": self.engine.skipped, "spikes": self.spikes.state()}})

    def until(self, out: Path, stop: int) -> None:
        def fed() -> Any:
            for step in range(self.start, stop):
                self.step = step
                yield StepBatches(step, batches(self.distiller, self.case, step % 4, "")[0], 0.0)

        phase = Phase(name="kd", steps=STEPS, mix={"kd": 1})
        journal = Journal(out / JOURNAL)
        loop = Loop(
            engine=self.engine,
            distiller=self.distiller,
            config=TrainConfig(regime="kd", regimes={"kd": [phase]}, log_every=1, checkpoint_every=1),
            optim=OptimConfig(lr=1e-3),
            seed=0,
            steps=STEPS,
            device=local_device(),
            journal=journal,
            save=self.save,
            saver=self.saver,
            preemption=PreemptionFlag(),
            watchdog=Watchdog(600, 0),
            spikes=self.spikes,
        )
        loop.run(fed())
        self.saver.finish()
        journal.close()


def main(out: Path) -> None:
    init_distributed()
    poisoned = set(random.Random(5).sample(range(1, STEPS - 8), POISONED))
    Run(out, None, poisoned).until(out, STOPPED)
    Run(out, out / "checkpoints" / f"step-{STOPPED:06d}", poisoned).until(out, STEPS)
    saved = sorted((out / "checkpoints").glob("step-*"))
    tensors = [read_tensor(stored) for folder in saved for file in (WEIGHTS, MOMENTS) for stored in read_header(folder / file).values()]
    series = metric_series(out / JOURNAL)
    facts = {
        "saved": len(saved),
        "bad": sum(not bool(torch.isfinite(tensor).all()) for tensor in tensors),
        "skipped": series["train/skipped_steps"][-1],
        "spikes": series["train/spikes_skipped"][-1],
        "same": [_same(saved[step - 1], saved[step]) for step in sorted({*poisoned, SPIKE})],
        "moved": not _same(saved[-2], saved[-1]),
        "saves": len(series["checkpoint/seconds"]),
        "straggler": series["train/straggler_ratio"][-1][1],
    }
    (out / "facts.json").write_text(json.dumps(facts))


def _same(one: Path, other: Path) -> bool:
    """Whether an update left all weights as they were."""
    first, second = (read_header(folder / WEIGHTS) for folder in (one, other))
    return all(torch.equal(read_tensor(first[name]), read_tensor(second[name])) for name in first)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
