"""One of two ranks, of which rank 1 computes longer and waits longer for data: `torchrun ... tests/train/straggling.py OUT`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as torch_dist

from speechkd.core import dist
from speechkd.tracking.metrics import Meter
from speechkd.train.timing import BY_RANK, StepTimes

STEPS = 8


def compute(seconds: float) -> None:
    """Keep a core busy for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def main(out: Path) -> None:
    torch_dist.init_process_group("gloo")
    meter = Meter({"samples": "rate"}, "cpu", BY_RANK)
    times = StepTimes(meter, torch.device("cpu"), peak_tflops=1.0)
    dist.barrier()
    for _ in range(STEPS):
        waited = 0.01 + 0.04 * dist.rank()
        times.begin(waited)
        times.arrive()
        dist.sum_over_ranks(torch.ones(1))
        compute(0.02 + 0.08 * dist.rank())
        dist.sum_over_ranks(torch.ones(1))  # rank 0 waits here, and that is not its own work
        times.end()
    times.before_drain()
    meter.drain()
    (out / f"{dist.rank()}.json").write_text(json.dumps(times.values(3e11, steps_left=10)))
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
