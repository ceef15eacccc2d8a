"""Runs the ranks on this machine with torchrun on loopback. A single rank runs the same way."""

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

    0: all ranks finished. 75: they stopped cleanly at a step boundary and left `requeue.json` in `run_folder`, so the run can continue.
    2: a rank refused the user's input. Otherwise 1: a rank failed and the others were stopped. SIGTERM, SIGINT and SIGUSR1 are forwarded to
    the workers but not to torchrun, which would kill them (a second SIGINT does that). Raises InputError for fewer than one rank.
    """
    if ranks < 1:
        raise InputError(f"at least one rank is needed, given {ranks}")
    note = run_folder / REQUEUE if run_folder is not None else None
    if note is not None:
        note.unlink(missing_ok=True)  # one from an earlier start would requeue a finished run
    torchrun = _Torchrun(_command(module_args, ranks), _environment(ranks, env))
    code = torchrun.wait()
    if code == 0 and note is not None and note.is_file():
        return EXIT_REQUEUE
    return code if code in (0, EXIT_INPUT) else EXIT_FAILED


def _command(module_args: Sequence[str], ranks: int) -> list[str]:
    # loopback everywhere: one machine must not depend on name resolution or other network interfaces
    launcher = ["-m", "speechkd.cluster.agent", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}", "--max-restarts=0"]
    return [sys.executable, *launcher, *module_args]


def _environment(ranks: int, env: Mapping[str, str] | None) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    return {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1", **os.environ, **(env or {})}


class _Torchrun:
    """The torchrun process; forwards signals to its workers."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._received: list[signal.Signals] = []
        self._old_handlers = {number: signal.signal(number, self._receive) for number in FORWARDED}
        # in its own session: the terminal's Ctrl-C must not reach torchrun, which would kill the workers in the middle of a step
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_set_up_child)
        self._sent: set[tuple[signal.Signals, int]] = set()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number))

    def wait(self) -> int:
        """Wait for torchrun, forwarding signals; returns its exit code."""
        try:
            while (code := self._process.poll()) is None:
                self._forward()
                time.sleep(POLL_S)
            return code
        finally:
            if self._process.poll() is None:  # this process raised while torchrun still runs
                self._process.terminate()
                self._process.wait()
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)

    def _forward(self) -> None:
        if self._received.count(signal.SIGINT) > 1:
            self._process.terminate()
            return
        for received in dict.fromkeys(self._received):
            for worker in self._workers():
                # Workers start with USR1 ignored, so USR1 waits until the worker has a handler. TERM and INT do not wait: a worker without
                # a handler dies of them, as intended. Each is sent once, because Python removes handlers while it shuts down.
                if (received, worker.pid) not in self._sent and (received is not signal.SIGUSR1 or _handles(worker.pid, received)):
                    self._sent.add((received, worker.pid))
                    with contextlib.suppress(psutil.NoSuchProcess):
                        worker.send_signal(received)

    def _workers(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self._process.pid).children())
        except psutil.NoSuchProcess:
            return []


def _handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, from Linux's signal mask; assumed true on other systems."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return sys.platform != "linux"
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)


def _set_up_child() -> None:
    """Runs in the child before torchrun: ignore USR1, which would kill its agent, and end the child when this process dies."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
