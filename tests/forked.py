"""Ranks that are forked from one process: `python -m tests.forked RANKS MODULE ARGUMENT...`, in place of torchrun.

The libraries are imported once and not by every rank: that is most of a short run's time. Whatever is about processes uses torchrun.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import transformers.models.qwen2.modeling_qwen2  # noqa: F401  (loaded here so that ranks find it loaded)
import transformers.models.whisper.modeling_whisper  # noqa: F401

from speechkd.engine.zero import import_deepspeed
from tests.cluster.ports import free_port


def get_ready() -> None:
    """Import what every rank needs, once."""
    torch.set_num_threads(1)
    import_deepspeed()
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # pulls in a compiler, which is half of a rank's start


def start(work: Callable[[], None], world: int, log: Path | None = None) -> list[int]:
    """Fork ranks that do `work`; their pids. They write to `log`, or to this process's standard error."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            if log is not None:
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os.environ |= address | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "TORCHELASTIC_RUN_ID": "forked",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            try:
                work()
                code = 0
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    return pids


def wait_until(what: Callable[[], bool], pids: list[int], seconds: float) -> bool:
    """Wait until `what` holds; False if all ranks have ended before."""
    end = time.monotonic() + seconds
    while not what():
        if all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in pids):
            return False
        assert time.monotonic() < end, "a rank hangs"
        time.sleep(0.002)
    return True


def end_all(pids: list[int]) -> list[int]:
    """Kill what still runs; exit codes."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def wait_for_all(pids: list[int]) -> bool:
    """Wait for the end of all; whether every one ended well. The first that does not ends the others."""
    left, well = set(pids), True
    while left:
        pid, status = os.wait()
        left.discard(pid)
        if status and well:
            well = False
            for other in left:
                os.kill(other, signal.SIGKILL)
    return well


def main() -> None:
    ranks, module, *words = sys.argv[1:]
    get_ready()

    def work() -> None:
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__")

    sys.exit(not wait_for_all(start(work, int(ranks))))


if __name__ == "__main__":
    main()
