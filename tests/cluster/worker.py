"""Worker ranks for the launcher's tests, `worker.py <what> <folder>`: real processes and a real group, without a model."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from speechkd.core.failures import record_failure


def main() -> int:
    what, folder = sys.argv[1], Path(sys.argv[2])
    stop: list[int] = []
    if what == "preempt":
        signal.signal(signal.SIGUSR1, lambda number, frame: stop.append(number))
        signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    if what == "deaf":
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: None)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    (folder / f"rank-{rank}").write_text(f"{world} {os.environ['OMP_NUM_THREADS']}")
    for _ in range(600 if what in ("preempt", "die", "deaf") else 3):
        flag = torch.tensor(len(stop))
        dist.all_reduce(flag)
        if flag.item():
            if rank == 0:
                (folder / "requeue.json").write_text("{}")
            break
        if what == "die" and rank == world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail" and rank == world - 1:
            record_failure(folder, rank, "RuntimeError: the first\nof all", RuntimeError("the first"))
            return 1
        time.sleep(0.05)
    if what == "fail":  # a collective would fail here
        record_failure(folder, rank, "connection closed by peer")
        return 1
    if what == "input":
        return 2
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
