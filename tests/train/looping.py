"""One rank, a real engine and a few steps of the loop: `python -m tests.train.looping OUT` writes what the test looks at."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechkd.engine.checkpoint import why_invalid
from speechkd.engine.checkpoint_saver import Retention, Saver
from speechkd.engine.ds_config import read_ds_config
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import init_distributed, local_device
from speechkd.models.flops import student_flops
from speechkd.tracking.journal import JOURNAL, Journal, metric_series, read_journal
from speechkd.train.config import Phase, TrainConfig
from speechkd.train.loop import Loop
from speechkd.train.optim import OptimConfig
from speechkd.train.preempt import PreemptionFlag
from speechkd.train.schedule import StepBatches
from speechkd.train.watchdog import Watchdog
from tests.contracts.cases import CASES
from tests.contracts.tiny import batches, distiller_of

ROOT = Path(__file__).parents[2]
ASKING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
"""What waits for a device that computes: a number is read, or a size hangs on values"""
STEPS, STOPPED = 8, 5


class Watched(Watchdog):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(limit_s=600, rank=0)
        self.acts: list[tuple[int, str]] = []

    def enter(self, step: int, act: str) -> None:
        super().enter(step, act)
        self.acts.append((step, act))


class Asked(TorchDispatchMode):
    """Where our own code asks the device for a value, outside the reports of an interval and the saves.

    `_kept_on_a_cpu` and `_runs_on_a_cpu` ask where there is no device to wait for, and nowhere else (`test_method_losses.py` runs every
    loss on one).
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ASKING:
            frames = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            if str(ROOT / "speechkd") in frames[-1].filename and all(
                frame.name not in ("_report", "save", "_kept_on_a_cpu", "_runs_on_a_cpu") for frame in frames
            ):
                self.places.append(f"{frames[-1].filename}:{frames[-1].lineno} {func.name()}")
        return func(*args, **(kwargs or {}))


def main(out: Path) -> None:
    init_distributed()
    case = CASES["loss-topk_kl"]
    distiller = distiller_of(case)
    flag, saved, kept, watchdog = PreemptionFlag(), list[int](), list[float](), Watched()

    def fed() -> Iterator[StepBatches]:
        for step in range(STEPS):
            if step == STOPPED:
                os.kill(os.getpid(), signal.SIGINT)
            fed_batches = batches(distiller, case, step, "all")[0]
            if step == 0:
                kept.extend((1 - tail).item() for tail in fed_batches[0].signals.tail_logp_T.exp() if tail < 1)
            yield StepBatches(step, fed_batches, 0.0)

    optim, journal = OptimConfig(lr=1e-3), Journal(out / JOURNAL)
    engine = Engine(distiller, optim, read_ds_config(ROOT / "ds_configs/zero3_test.json"), 2, 1.0)
    saver = Saver(engine, out / "checkpoints", Retention())

    def save(step: int) -> None:
        saved.append(step)
        saver.begin(step, {})

    loop = Loop(
        engine=engine,
        distiller=distiller,
        config=TrainConfig(regime="kd", regimes={"kd": [Phase(name="kd", steps=STEPS, mix={"kd": 1})]}, log_every=3, peak_tflops=0.1),
        optim=optim,
        seed=0,
        steps=STEPS,
        device=local_device(),
        journal=journal,
        save=save,
        saver=saver,
        preemption=flag,
        watchdog=watchdog,
        flops=student_flops(distiller.student),
    )
    with Asked() as asked, watchdog:
        outcome = loop.run(fed())
    journal.close()
    series = metric_series(out / JOURNAL)
    steps = [step for step, _ in series["train/loss"]]
    mass = [series["teacher/topk_mass"][0][1], sum(kept) / len(kept)]
    tags = {name: value for record in read_journal(out / JOURNAL) if record["kind"] == "tag" for name, value in record["values"].items()}
    facts = {
        "asked": sorted(set(asked.places)),
        "outcome": outcome.value,
        "saved": saved,
        "committed": not why_invalid(out / "checkpoints" / f"step-{saved[-1]:06d}"),
        "steps": steps,
        "tags": tags,
        "mass": mass,
        "names": sorted(series),
        "acts": watchdog.acts,
    }
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
