"""A rank that no longer gets on is ended with a line that says where it stood: a job that hangs costs its allocation and tells nobody.

A collective that never returns, a data source that hangs, a file system that is away: none of them raises. Ended, the job can be started
again and goes on at its last checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from threading import Event, Thread
from types import TracebackType

from speechkd.core.errors import EXIT_FAILED
from speechkd.core.log import say

LONGEST_NAP_S = 5.0


class Watchdog:
    """Ends this process when one act of a step takes longer than `limit_s`: `with Watchdog(...) as dog: dog.enter(step, "forward")`.

    It says rank, step and act, and dumps the stacks of all threads to standard error. Where Python itself stands still (a call that keeps
    the interpreter's lock), faulthandler's own thread does the ending, and can give only the stacks. Nothing is watched before the first
    `enter`: loading may take its time. The clock runs on while a process is stopped (SIGSTOP): where jobs are suspended for longer than
    `limit_s`, they are ended when they wake.
    """

    def __init__(self, limit_s: float, rank: int) -> None:
        self._limit_s, self._rank = limit_s, rank
        self._since: tuple[float, int, str] | None = None
        self._done = Event()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, step: int, act: str) -> None:
        """The rank begins an act of a step (from 0). One assignment: cheap enough for every one."""
        self._since = time.monotonic(), step, act

    def __enter__(self) -> Watchdog:
        self._arm()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Set the clock that needs no interpreter; it is set back after every nap, so it strikes only where our thread does not run."""
        faulthandler.dump_traceback_later(self._limit_s, exit=True)

    def _watch(self) -> None:
        nap = min(LONGEST_NAP_S, self._limit_s / 4)
        while not self._done.wait(nap):
            self._arm()
            began, step, act = self._since or (time.monotonic(), 0, "")
            waited = time.monotonic() - began
            if waited > self._limit_s:
                self._end(step, act, waited)

    def _end(self, step: int, act: str, waited: float) -> None:
        say(
            f"error on rank {self._rank}: it has stalled: `{act}` of step {step} has taken {waited:.0f} s, more than train.stall_s "
            f"({self._limit_s:g} s); where it stands follows, and the same command continues from the last checkpoint"
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_FAILED)  # nothing that would wait for what hangs
