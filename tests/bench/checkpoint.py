"""How long a save keeps the step loop waiting, beside a synchronous save: `python -m tests.bench.checkpoint [MB] [FOLDER]`.

One process, ZeRO-3, `MB` (default 512) of trained float32 weights and twice as much of moments. Rounds of both kinds alternate.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from speechkd.engine.checkpoint_saver import Retention, Saver
from speechkd.engine.ds_config import read_ds_config
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import init_distributed
from speechkd.train.optim import OptimConfig

ROOT = Path(__file__).parents[2]
ROUNDS, WIDTH = 3, 4096


def step(engine: Engine) -> float:
    """One small step; its seconds."""
    began = time.monotonic()
    engine.backward(engine(torch.ones(1, WIDTH)).square().mean())
    engine.step()
    return time.monotonic() - began


def main(megabytes: int, folder: Path) -> None:
    """Print medians of the synchronous save, of the stall, and of steps alone and beside a write."""
    init_distributed()
    module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(-(-megabytes * 10**6 // (4 * WIDTH**2)))))
    size = sum(p.numel() for p in module.parameters()) * 4 / 1e6
    engine = Engine(module, OptimConfig(lr=1e-6), read_ds_config(ROOT / "ds_configs/zero3_test.json"), 1, 1.0)
    saver = Saver(engine, folder, Retention())
    rows: dict[str, list[float]] = {"synchronous": [], "stall": [], "step": [], "beside": []}
    number = 0
    step(engine)
    for _ in range(ROUNDS):
        rows["step"].append(step(engine))
        number += 1
        began = time.monotonic()
        saver.begin(number, {})
        saver.finish()
        rows["synchronous"].append(time.monotonic() - began)
        number += 1
        began = time.monotonic()
        saver.begin(number, {})
        rows["stall"].append(time.monotonic() - began)
        rows["beside"].append(step(engine))
        saver.finish()
        saver.drain_times()
    found = {name: median(values) for name, values in rows.items()}
    print(f"{size:.0f} MB of trained weights, {3 * size:.0f} MB a checkpoint, {ROUNDS} rounds, medians")
    print(f"synchronous save        {found['synchronous']:.2f} s")
    print(f"stall of the step loop  {found['stall']:.2f} s, {found['stall'] / found['synchronous']:.1%} of it")
    print(f"step alone              {found['step']:.2f} s; beside a write {found['beside']:.2f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(tempfile.mkdtemp(dir=sys.argv[2] if len(sys.argv) > 2 else None))
    try:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 512, where)
    finally:
        shutil.rmtree(where)
