"""Real ranks that measure the held-out loss: `python -m tests.train.holding_out OUT [overfit]` writes what the test looks at."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from speechkd.core import dist
from speechkd.core.types import Batch
from speechkd.data.plan.plan import ExampleRef
from speechkd.engine.checkpoint import committed
from speechkd.engine.checkpoint_saver import Retention, Saver
from speechkd.engine.ds_config import read_ds_config
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import close_distributed, init_distributed, local_device
from speechkd.tracking.journal import JOURNAL, Journal, metric_series
from speechkd.train.config import HeldOutConfig, Phase, TrainConfig
from speechkd.train.distiller import Distiller
from speechkd.train.held_out import Group, HeldOut
from speechkd.train.history import History
from speechkd.train.loop import Loop
from speechkd.train.optim import OptimConfig
from speechkd.train.preempt import PreemptionFlag
from speechkd.train.schedule import StepBatches
from speechkd.train.watchdog import Watchdog
from tests.contracts.cases import CASES
from tests.contracts.tiny import collator, distiller_of, rows

ROOT = Path(__file__).parents[2]
CASE = CASES["loss-topk_kl"]
ROWS = [row for seed in range(4) for row in rows(CASE, 1000 + seed, "ift")]
GROUPS: dict[Group, list[ExampleRef]] = {
    ("gender", "german"): [ExampleRef(0, row) for row in range(5)],
    ("gender", "french"): [ExampleRef(0, row) for row in range(5, 8)],
    ("digits", ""): [ExampleRef(0, row) for row in range(8, 15)],
}
OPTIM = OptimConfig(lr=3e-2)
STEPS = 40


def make(out: Path, config: HeldOutConfig) -> tuple[Distiller, Engine, HeldOut]:
    distiller = distiller_of(CASE)
    engine = Engine(distiller, OPTIM, read_ds_config(ROOT / "ds_configs/zero3_test.json"), 1, 1.0)
    collate = collator(distiller, CASE)

    def load(refs: Sequence[ExampleRef]) -> Batch:
        return collate([ROWS[ref.row] for ref in refs])

    def record(history: History) -> None:
        (out / "history.json").write_text(json.dumps({"values": history.values, "best": history.best, "stopped": history.stopped}))

    held_out = HeldOut(
        engine=engine, distiller=distiller, config=config, groups=GROUPS, load=load, seed=0, history=History(), record=record
    )
    return distiller, engine, held_out


def whole(distiller: Distiller) -> dict[str, float]:
    """The loss of each group, and of all, in one batch and without an engine."""
    collate, found = collator(distiller, CASE), dict[str, float]()
    with torch.no_grad():
        for name, refs in [*GROUPS.items(), ("all", [ref for refs in GROUPS.values() for ref in refs])]:
            out = distiller(collate([ROWS[ref.row] for ref in refs]))["topk_kl"]
            found[name if isinstance(name, str) else "_".join(name)] = float(out.total / out.count)
    return found


def overfit(out: Path) -> None:
    """Learns two examples by heart, with a rate that is far too high, and asks every other step how it does on the others."""
    config = HeldOutConfig(split="test", every=2, batch_size=4, patience=3)
    distiller, engine, held_out = make(out, config)
    collate = collator(distiller, CASE)
    journal, saver = Journal(out / JOURNAL), Saver(engine, out / "checkpoints", Retention(keep=2))

    def fed() -> Iterator[StepBatches]:
        for step in range(STEPS):
            yield StepBatches(step, [collate(rows(CASE, 1, "ift")[:2])], 0.0)

    def save(step: int) -> None:
        saver.begin(step, {})

    train = TrainConfig(
        regime="kd", regimes={"kd": [Phase(name="kd", steps=STEPS, mix={"kd": 1})]}, log_every=1, checkpoint_every=1, held_out=config
    )
    loop = Loop(
        engine=engine,
        distiller=distiller,
        config=train,
        optim=OPTIM,
        seed=0,
        steps=STEPS,
        device=local_device(),
        journal=journal,
        save=save,
        saver=saver,
        preemption=PreemptionFlag(),
        watchdog=Watchdog(600, 0),
        held_out=held_out,
    )
    outcome = loop.run(fed())
    journal.close()
    series = metric_series(out / JOURNAL)
    facts = {
        "outcome": outcome.value,
        "kept": [folder.name for folder in committed(out / "checkpoints")],
        "trained": dict(series["train/loss"]),
        "held_out": dict(series["held_out/loss"]),
        "names": sorted(name for name in series if name.startswith("held_out/")),
    }
    (out / "facts.json").write_text(json.dumps(facts))


def main(out: Path, overfits: bool) -> None:
    init_distributed()
    if overfits:
        overfit(out)
        return
    wanted = whole(distiller_of(CASE))
    _, engine, held_out = make(out, HeldOutConfig(split="test", batch_size=4))
    first = held_out.losses()
    again = held_out.losses()
    assert first == again and engine.module.training
    if dist.rank() == 0:
        (out / "facts.json").write_text(json.dumps({"losses": first, "whole": wanted}))
    close_distributed()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:] == ["overfit"])
