"""Ranks on this machine, by torchrun on loopback: the same worker code as on a cluster, for one rank as for many."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from speechkd.core.errors import EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, InputError

REQUEUE = "requeue.json"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
POLL_S = 0.1
_PR_SET_PDEATHSIG = 1


def run_ranks(module_args: Sequence[str], ranks: int, run_folder: Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run `python -m <module_args>` (or a script path with arguments) on `ranks` processes; returns the exit code.

    0: all ranks finished. 75: they finished and left `requeue.json` in `run_folder`: they stopped at a step boundary, to be continued.
    2: a rank refused the user's input. Otherwise 1: a rank failed, and the others were ended. SIGTERM, SIGINT and SIGUSR1 reach the
    workers and not torchrun, which would kill them (a second SIGINT does that). Raises InputError for fewer than one rank.
    """
    if ranks < 1:
        raise InputError(f"at least one rank is needed, given {ranks}")
    note = run_folder / REQUEUE if run_folder is not None else None
    if note is not None:
        note.unlink(missing_ok=True)  # an old one would send a finished run round again
    agent = _Agent(_command(module_args, ranks), _environment(ranks, env))
    code = agent.wait()
    if code == 0 and note is not None and note.is_file():
        return EXIT_REQUEUE
    return code if code in (0, EXIT_INPUT) else EXIT_FAILED


def _command(module_args: Sequence[str], ranks: int) -> list[str]:
    # loopback throughout: a name that does not resolve, or a foreign interface, must not matter to a run on one machine
    torchrun = ["-m", "speechkd.cluster.agent", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}", "--max-restarts=0"]
    return [sys.executable, *torchrun, *module_args]


def _environment(ranks: int, env: Mapping[str, str] | None) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    return {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1", **os.environ, **(env or {})}


class _Agent:
    """The torchrun process and what is forwarded past it."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._asked: list[signal.Signals] = []
        self._before = {name: signal.signal(name, self._ask) for name in FORWARDED}
        # a session of its own: the terminal's Ctrl-C must not reach torchrun, which would kill the workers in the middle of a step
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_child)
        self._sent: set[tuple[signal.Signals, int]] = set()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(signal.Signals(number))

    def wait(self) -> int:
        """Exit code of torchrun, forwarding signals meanwhile."""
        try:
            while (code := self._process.poll()) is None:
                self._forward()
                time.sleep(POLL_S)
            return code
        finally:
            if self._process.poll() is None:  # we are leaving by an error of our own
                self._process.terminate()
                self._process.wait()
            for name, handler in self._before.items():
                signal.signal(name, handler)

    def _forward(self) -> None:
        if self._asked.count(signal.SIGINT) > 1:
            self._process.terminate()
            return
        for name in dict.fromkeys(self._asked):
            for worker in self._workers():
                # A worker inherits that USR1 is ignored, so it waits until the worker listens. TERM and INT do not wait: whoever has no
                # handler dies of them, which is what they mean. Each goes once: a handler is gone while Python shuts down.
                if (name, worker.pid) not in self._sent and (name is not signal.SIGUSR1 or _listens(worker.pid, name)):
                    self._sent.add((name, worker.pid))
                    with contextlib.suppress(psutil.NoSuchProcess):
                        worker.send_signal(name)

    def _workers(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self._process.pid).children())
        except psutil.NoSuchProcess:
            return []


def _listens(pid: int, name: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, by the mask that Linux shows; elsewhere it is taken for granted."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return sys.platform != "linux"
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (name - 1) & 1)


def _child() -> None:
    """In the child, before torchrun starts: its agent dies of USR1 unless it is ignored, and it must not outlive us."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
