"""Reading untrusted audio: every item under limits, and an item that ends its decoder becomes a line of the quarantine, not of the log.

A block is read in a process of its own. That process says which item it is at (`Watch`, shared memory), so that whoever started it knows
whom to blame when it dies or hangs, and starts it again without that item.
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
"""Wall clock of one item; a source may start a server or read a table before its first"""
ITEM_CPU_S, RENEWED_S = 60, 1.0
MAX_REASON = 400
"""Letters of a reason in the quarantine"""
DEATHS = 16
"""Items of one block that may end their decoder before the block is given up"""
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
_STATE = struct.Struct("qd")


class Watch:
    """Which item a child is at, and since when; 16 bytes that both processes see."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _STATE.size)
        self.at(-1)

    def at(self, item: int) -> None:
        """Said by the child before it begins an item; -1: none."""
        self._memory[:] = _STATE.pack(item, time.monotonic())

    def now(self) -> tuple[int, float]:
        """(item, seconds since it began)."""
        item, since = _STATE.unpack(self._memory[:])
        return item, time.monotonic() - since


_renewed = -math.inf


def read_guarded(
    source: Source, items: Sequence[Item], watch: Watch | None = None, fatal: Mapping[int, str] | None = None
) -> Iterator[RawClip | Rejected | None]:
    """`source.read(items)`, one result an item: an item of `fatal` is rejected unread, one that raises is rejected with what it raised.

    Raises InputError where the source does: that is the user's to mend.
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
            except Exception as error:  # noqa: B902  (whatever a decoder's wrapper thinks of hostile bytes)
                yield Rejected(explained(error))
                number += 1
                break  # the generator is dead: begin another one behind this item
            if isinstance(clip, Rejected) and len(clip.reason) > MAX_REASON:  # a reason may quote a name that came with the data
                clip = replace(clip, reason=f"{clip.reason[:MAX_REASON]}...")
            yield clip
            number += 1
    if watch:
        watch.at(-1)


def explained(error: BaseException) -> str:
    """An unforeseen error as a reason."""
    if isinstance(error, MemoryError):
        return "needs more memory than is allowed"
    lines = str(error).splitlines()
    return f"cannot be read: {type(error).__name__}{f': {lines[0][:200]}' if lines else ''}"


def _allow_cpu() -> None:
    """At least ITEM_CPU_S - RENEWED_S from here on; what was spent is asked for once a RENEWED_S, since it takes as long as a short clip's
    digest."""
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
    """(item, reason) where a child's end is its item's fault; None where something else ended it (a kill from outside, a bug)."""
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
"""Exit codes of a child: it met MemoryError between two items; it met a clip to resample before the library for it was loaded"""


def end_hung(pid: int, watch: Watch) -> bool:
    """Kill a child whose item takes too long; whether it did."""
    item, seconds = watch.now()
    if item < 0 or seconds <= ITEM_S:
        return False
    os.kill(pid, signal.SIGKILL)
    return True
