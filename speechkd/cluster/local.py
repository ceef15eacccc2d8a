"""Runs the ranks on this machine with torchrun, on loopback unless it is one of several nodes. A single rank runs the same way."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from speechkd.cluster.nodes import Ended, Team
from speechkd.core.errors import EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, InputError
from speechkd.core.failures import first_failure
from speechkd.core.log import say

REQUEUE = "requeue.json"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
POLL_S = 0.1
ENDED = {0: "finished", EXIT_INPUT: "a rank refused the input"}
BY_HAND = "ended at once by Ctrl-C"
"""Reason of ranks that a user ended in the middle of a step"""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OnNodes:
    """What starting ranks on one of several nodes needs."""

    team: Team
    port: int
    """of torchrun's own store on node 0"""
    interface: str
    grace_s: float
    """seconds that ranks get to end by themselves when another node has failed"""


def run_ranks(
    module_args: Sequence[str],
    ranks: int,
    run_folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    received: list[signal.Signals] | None = None,
    on_nodes: OnNodes | None = None,
) -> Ended:
    """Run `python -m <module_args>` (or a script path with arguments) on `ranks` processes of this machine; returns exit code and reason.

    0: all ranks finished. 75: they stopped cleanly at a step boundary and left `requeue.json` in `run_folder`, so the run can continue.
    2: a rank refused the user's input. Otherwise 1: a rank failed and the others were stopped. The reason is the first error that a rank
    left in the run folder (`core.failures`), and the last line on the screen. SIGTERM, SIGINT and SIGUSR1 are forwarded to the workers but
    not to torchrun, which would kill them (a second SIGINT ends them at once); `received` are signals that came before.
    `on_nodes`: this machine is one of several, which all get the same code; a rank that fails on one ends the ranks of all.
    Raises InputError for fewer than one rank.
    """
    if ranks < 1:
        raise InputError(f"at least one rank is needed, given {ranks}")
    note = run_folder / REQUEUE if run_folder is not None and (on_nodes is None or on_nodes.team.leads) else None
    if note is not None:
        note.unlink(missing_ok=True)  # one from an earlier start would requeue a finished run
    torchrun = _Torchrun(_arguments(module_args, ranks, on_nodes), _environment(ranks, env, on_nodes), received or [])
    team = on_nodes.team if on_nodes is not None else None
    code, reason, trouble = torchrun.wait(team.trouble if team else lambda: None, on_nodes.grace_s if on_nodes else 0.0)
    if trouble is not None and team is not None and not team.leads:
        reason = trouble.reason  # torchrun only knows that it was ended; node 0 may be gone, and nobody else says why
    if code == 0 and note is not None and note.is_file():
        ended = Ended(EXIT_REQUEUE, "stopped after a checkpoint")
    else:
        reason = _first_cause(run_folder, reason, torchrun.by_hand, code) if code else reason
        ended = Ended(code if code in (0, EXIT_INPUT) else EXIT_FAILED, reason or ENDED.get(code, f"torchrun ended with code {code}"))
    if team is not None:
        ended = team.conclude(ended)
    if ended.code in (EXIT_FAILED, EXIT_INPUT) and not torchrun.by_hand:
        say(f"error: {ended.reason}")
    return ended


def _first_cause(run_folder: Path | None, said: str, by_hand: bool, code: int) -> str:
    """Why the ranks ended: a signal that struck one (which leaves no error), the user's second Ctrl-C, or the first error of any rank."""
    if by_hand:
        return BY_HAND
    first = first_failure(run_folder) if run_folder is not None and " with SIG" not in said else None
    return said if first is None else first.reason if code == EXIT_INPUT else str(first)


def free_port(above: int) -> int:
    """A free port for torchrun's own store, just above the rendezvous: below the range that outgoing connections take."""
    for port in range(above + 1, above + 101):
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise InputError(f"no free port from {above + 1} to {above + 100} on this host (--rendezvous)")


def _arguments(module_args: Sequence[str], ranks: int, on_nodes: OnNodes | None) -> list[str]:
    if on_nodes is None:  # loopback everywhere: one machine must not depend on name resolution or other network interfaces
        where = ["--standalone", "--local-addr=127.0.0.1"]
    else:
        place = on_nodes.team.place
        where = [
            f"--nnodes={place.nodes}",
            f"--node-rank={place.node_rank}",
            f"--master-addr={place.host}",
            f"--master-port={on_nodes.port}",
        ]
    return [*where, f"--nproc-per-node={ranks}", "--max-restarts=0", *module_args]


def _environment(ranks: int, env: Mapping[str, str] | None, on_nodes: OnNodes | None) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    interface = on_nodes.interface if on_nodes is not None else "lo"
    return {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": interface, "PYTHONUNBUFFERED": "1", **os.environ, **(env or {})}


class _Torchrun:
    """The torchrun process; forwards signals to its workers."""

    def __init__(self, arguments: list[str], environment: dict[str, str], received: list[signal.Signals]) -> None:
        self._received = received
        self._old_handlers = {number: signal.signal(number, self._receive) for number in FORWARDED}
        self._said, pipe = os.pipe()
        command = [sys.executable, "-m", "speechkd.cluster.agent", str(pipe), *arguments]
        # in its own session: the terminal's Ctrl-C must not reach torchrun, which would kill the workers in the middle of a step
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_set_up_child, pass_fds=(pipe,))
        os.close(pipe)
        self._sent: set[tuple[signal.Signals, int]] = set()
        self._interrupts = 0
        self.by_hand = False
        """whether the user did not wait for the end of the step"""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number))

    def wait(self, trouble: Callable[[], Ended | None], grace_s: float) -> tuple[int, str, Ended | None]:
        """Wait for torchrun, forwarding signals; `trouble` ends it, after `grace_s` at once.

        Returns its exit code and last words, and the trouble that ended it.
        """
        kill_at, found = float("inf"), None
        try:
            while (code := self._process.poll()) is None:
                if found is None and (found := trouble()) is not None:
                    self._process.terminate()
                    kill_at = time.monotonic() + grace_s
                if time.monotonic() > kill_at:
                    self._kill()
                self._forward()
                time.sleep(POLL_S)
            with os.fdopen(self._said, "rb") as said:
                return code, said.read(1000).decode(errors="replace"), found
        finally:
            if self._process.poll() is None:  # this process raised while torchrun still runs
                self._process.terminate()
                self._process.wait()
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)

    def _kill(self) -> None:
        """End the ranks where they stand: torchrun would wait 30 s for one that is stopped, and 300 s for one that never came."""
        for process in [*self._workers(), self._process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _forward(self) -> None:
        interrupts = self._received.count(signal.SIGINT)
        if interrupts > self._interrupts and not self.by_hand:
            self._interrupts = interrupts
            # Ranks that listen handle USR1, which is ignored from their start, and again while they leave; for INT Python has a handler.
            listening = [_handles(worker.pid, signal.SIGUSR1) for worker in self._workers()]
            if interrupts > 1 or not listening or not all(listening):
                say("train: stopping at once")
                self.by_hand = True
                self._kill()
        if self.by_hand:
            return
        for received in dict.fromkeys(self._received):
            for worker in self._workers():
                # Workers start with USR1 ignored, so USR1 waits until the worker has a handler. TERM does not wait: a worker without
                # a handler dies of it, as intended. Each is sent once, because Python removes handlers while it shuts down.
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
