"""A rank that no longer gets on is ended with a line that says where it stood: a job that hangs costs its allocation and tells nobody.

A collective that never returns, a data source that hangs, a file system that is away: none of them raises. Ended, the job can be started
again and goes on at its last checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import TextIO

from speechkd.core.errors import EXIT_FAILED
from speechkd.core.failures import record_failure
from speechkd.core.log import say

STACKS, REQUEST = "stacks", "request"
"""In the run folder: the stacks of all ranks, `rank-00003.txt` and so on; and the file by which a rank that stalls asks for the others'"""
LONGEST_NAP_S = 5.0


class Watchdog:
    """Ends this process when one act of a step takes longer than `limit_s`: `with Watchdog(...) as dog: dog.enter(step, "forward")`.

    It says rank, step and act, and dumps the stacks of all threads to standard error. Where Python itself stands still (a call that keeps
    the interpreter's lock), faulthandler's own thread does the ending, and can give only the stacks. Nothing is watched before the first
    `enter`: loading may take its time. The clock runs on while a process is stopped (SIGSTOP): where jobs are suspended for longer than
    `limit_s`, they are ended when they wake.

    With `stacks`, a folder that all ranks see, the stacks go to a file of the rank there, too, and the rank first asks the others for
    theirs: whoever stalls is often not the one that hangs. It waits for `world` files, but not for long: a stopped rank writes none.
    """

    def __init__(self, limit_s: float, rank: int, stacks: Path | None = None, world: int = 1) -> None:
        self._limit_s, self._rank, self._stacks, self._world = limit_s, rank, stacks, world
        self._nap_s = min(LONGEST_NAP_S, limit_s / 4)
        self._asked = 0.0
        """when the newest request was made that this rank has answered, by the clock of the file system"""
        self._file: TextIO | None = None
        self._since: tuple[float, int, str] | None = None
        self._done = Event()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, step: int, act: str) -> None:
        """The rank begins an act of a step (from 0). One assignment: cheap enough for every one."""
        self._since = time.monotonic(), step, act

    @property
    def place(self) -> tuple[int, str] | None:
        """The step that the rank is in, from 0, and its act; None before the first."""
        return self._since[1:] if self._since is not None else None

    def __enter__(self) -> Watchdog:
        if self._stacks is not None:
            self._stacks.mkdir(parents=True, exist_ok=True)
            self._asked = self._request_time()  # of an earlier start
            self._file = self._path(self._rank).open("w")
        self._arm()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            path = self._path(self._rank)
            if path.is_file() and not path.stat().st_size:
                path.unlink()

    def _arm(self) -> None:
        """Set the clock that needs no interpreter; it is set back after every nap, so it strikes only where our thread does not run."""
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file or sys.stderr)

    def _watch(self) -> None:
        while not self._done.wait(self._nap_s):
            self._arm()
            asked = self._request_time()
            if asked > self._asked:
                self._asked = asked
                self._dump("another rank has stalled")
            began, step, act = self._since or (time.monotonic(), 0, "")
            waited = time.monotonic() - began
            if waited > self._limit_s:
                self._end(step, act, waited)

    def _end(self, step: int, act: str, waited: float) -> None:
        stalled = f"it has stalled: `{act}` of step {step} has taken {waited:.0f} s, more than train.stall_s ({self._limit_s:g} s)"
        if self._stacks is not None:
            record_failure(self._stacks.parent, self._rank, f"{stalled}; the stacks of all ranks are in {self._stacks}")
        say(f"error on rank {self._rank}: {stalled}; where it stands follows, and the same command continues from the last checkpoint")
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        self._dump(f"this rank has stalled: `{act}` of step {step} has taken {waited:.0f} s")
        self._ask_others()
        os._exit(EXIT_FAILED)  # nothing that would wait for what hangs

    def _path(self, rank: int) -> Path:
        assert self._stacks is not None
        return self._stacks / f"rank-{rank:05d}.txt"

    def _request_time(self) -> float:
        try:
            return (self._stacks / REQUEST).stat().st_mtime if self._stacks is not None else 0.0
        except OSError:
            return 0.0

    def _dump(self, why: str) -> None:
        """Write this rank's stacks to its file."""
        if self._file is None:
            return
        step, act = (self._since or (0.0, 0, ""))[1:]
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"rank {self._rank} of {self._world} at `{act}` of step {step}, {time.strftime('%Y-%m-%d %H:%M:%S')}: {why}\n")
            self._file.flush()
            faulthandler.dump_traceback(file=self._file, all_threads=True)
            os.fsync(self._file.fileno())  # a file of another node is seen when it is written back
        except OSError as error:
            say(f"rank {self._rank}: no stacks in `{self._path(self._rank)}`: {error}")

    def _ask_others(self) -> None:
        """Ask for the stacks of all ranks and wait until they are there, at most two naps and a bit."""
        if self._stacks is None:
            return
        try:
            if self._request_time() <= self._asked:  # nobody else has asked yet
                (self._stacks / REQUEST).write_text(f"rank {self._rank}\n")
            asked, end = self._request_time(), time.monotonic() + 2 * self._nap_s + 2.0
            while time.monotonic() < end and sum(self._answered(rank, asked) for rank in range(self._world)) < self._world:
                time.sleep(0.1)
        except OSError as error:
            say(f"rank {self._rank}: the stacks of other ranks were not asked for: {error}")
        say(f"the stacks of all ranks that still run are in `{self._stacks}`")

    def _answered(self, rank: int, asked: float) -> bool:
        try:
            facts = self._path(rank).stat()
        except OSError:
            return False
        return facts.st_size > 0 and (rank == self._rank or facts.st_mtime >= asked)
