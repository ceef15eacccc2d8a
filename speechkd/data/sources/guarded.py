"""Reads untrusted audio under limits: an item that crashes or hangs its decoder goes to quarantine, and the rest is still read.

Items are read in a child process, which records the current item in shared memory (`Watch`). If the child dies or hangs, its parent knows
which item caused it and starts a new child without that item.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import signal
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from speechkd.core.errors import InputError
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources.base import Item, Source

ITEM_S = 300.0
"""Wall-clock seconds per item; before the first, a source may start a server or read a table"""
ITEM_CPU_S, RENEWED_S = 60, 1.0
MAX_REASON = 400
"""Characters of a reason in quarantine"""
DEATHS = 16
"""Items of one shard that may end their decoder before the shard fails"""
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
_STATE = struct.Struct("qd")


class Watch:
    """The child's current item and its start time, in 16 bytes of shared memory."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _STATE.size)
        self.at(-1)

    def at(self, item: int) -> None:
        """Called by the child before each item; -1: no current item."""
        self._memory[:] = _STATE.pack(item, time.monotonic())

    def now(self) -> tuple[int, float]:
        """(item, seconds since it began)."""
        item, since = _STATE.unpack(self._memory[:])
        return item, time.monotonic() - since


_renewed = -math.inf


def read_guarded(
    source: Source, items: Sequence[Item], watch: Watch | None = None, fatal: Mapping[int, str] | None = None
) -> Iterator[RawClip | Rejected | None]:
    """Read `items`, one result per item. Items in `fatal` are rejected unread; an item that raises is rejected with that error as reason.

    InputError from the source is passed on: the user must fix it.
    """
    known = fatal or {}
    number = 0
    while number < len(items):
        if number in known:
            yield Rejected(known[number])
            number += 1
            continue
        end = next((later for later in range(number, len(items)) if later in known), len(items))
        clips = source.read(items[number:end])
        while number < end:
            if watch:
                watch.at(number)
                _allow_cpu()
            try:
                clip = next(clips)
            except InputError:
                raise
            except StopIteration:
                raise RuntimeError(f"the source ended before item `{items[number].key}`") from None
            except Exception as error:  # noqa: B902  (hostile bytes can raise anything in a decoder)
                yield Rejected(explained(error))
                number += 1
                break  # the generator is finished: start another after this item
            if isinstance(clip, Rejected) and len(clip.reason) > MAX_REASON:  # a reason may quote a long name from the data
                clip = replace(clip, reason=f"{clip.reason[:MAX_REASON]}...")
            yield clip
            number += 1
    if watch:
        watch.at(-1)


def explained(error: BaseException) -> str:
    """The rejection reason for an unexpected error."""
    if isinstance(error, MemoryError):
        return "needs more memory than is allowed"
    lines = str(error).splitlines()
    return f"cannot be read: {type(error).__name__}{f': {lines[0][:200]}' if lines else ''}"


def _allow_cpu() -> None:
    """Allow at least ITEM_CPU_S - RENEWED_S more seconds of CPU time. Renewed once per RENEWED_S, since getrusage takes as long as hashing
    a short clip."""
    global _renewed
    now = time.monotonic()
    if now - _renewed < RENEWED_S:
        return
    _renewed = now
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(spent.ru_utime + spent.ru_stime) + ITEM_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def blame(status: int, watch: Watch, hung: bool) -> tuple[int, str] | None:
    """(item, reason) if the current item ended the child; None if something else did (a kill from outside, a bug)."""
    item, seconds = watch.now()
    if item < 0:
        return None
    if hung:
        return item, f"took longer than {ITEM_S:.0f} s"
    if status == -signal.SIGXCPU:
        return item, f"needs more than {ITEM_CPU_S} s of CPU time"
    if -status in _CRASHES:
        return item, f"ends its decoder with {signal.Signals(-status).name}"
    if status == OUT_OF_MEMORY:
        return item, "needs more memory than is allowed"
    return None


OUT_OF_MEMORY, NEEDS_RESAMPLER = 77, 78
"""Exit codes of a child: MemoryError between two items; a clip needs resampling but torch is not loaded"""


def end_hung(pid: int, watch: Watch) -> bool:
    """Kill a child whose current item takes too long; True if it was killed."""
    item, seconds = watch.now()
    if item < 0 or seconds <= ITEM_S:
        return False
    os.kill(pid, signal.SIGKILL)
    return True
