"""One of two ranks that reduce step by step; rank 1 hangs in its data: `torchrun ... tests/train/stalling.py LIMIT_S HANGS_AT STACKS`."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import torch
import torch.distributed as torch_dist

from speechkd.core import dist
from speechkd.train.watchdog import Watchdog


def read_next(step: int, hangs_at: int) -> None:
    """What a data source does, until it does not."""
    if dist.rank() == 1 and step == hangs_at:
        threading.Event().wait()


def main(limit_s: float, hangs_at: int, stacks: Path) -> None:
    torch_dist.init_process_group("gloo")
    dist.barrier()
    with Watchdog(limit_s, dist.rank(), stacks, dist.world_size()) as dog:
        for step in range(hangs_at + 1):
            dog.enter(step, "data")
            read_next(step, hangs_at)
            dog.enter(step, "all_reduce")
            dist.sum_over_ranks(torch.ones(1))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
