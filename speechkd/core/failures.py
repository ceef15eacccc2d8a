"""What ended a run: every rank that fails leaves its error in the run folder, and the earliest is the cause. The others follow from it.

RUN/errors/rank-00003.json    {"time", "rank", "reason"}: when, and in one line why
RUN/errors/rank-00003.txt     its traceback, where it has one
"""

from __future__ import annotations

import json
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from speechkd.core.files import write_json, write_text

ERRORS, LONGEST = "errors", 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of one rank."""

    time: float
    """seconds since 1970"""
    rank: int
    reason: str
    """one line"""
    trace: Path | None
    """file with its traceback"""

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.reason}" + (f" (traceback: {self.trace})" if self.trace is not None else "")


def record_failure(run: Path, rank: int, reason: str, error: BaseException | None = None) -> bool:
    """Leave a rank's error in the run folder, with the traceback of `error`; False where that cannot be written."""
    name = f"rank-{rank:05d}"
    try:
        if error is not None:
            write_text(run / ERRORS / f"{name}.txt", "".join(traceback.format_exception(error)))
        write_json(run / ERRORS / f"{name}.json", {"time": time.time(), "rank": rank, "reason": one_line(reason)})
    except OSError:
        return False
    return True


def first_failure(run: Path) -> Failure | None:
    """The earliest error that a rank left since `forget_failures`; None if there is none."""
    found = []
    for path in (run / ERRORS).glob("rank-*.json"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            trace = path.with_suffix(".txt")
            found.append(Failure(float(value["time"]), int(value["rank"]), str(value["reason"]), trace if trace.is_file() else None))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return min(found, key=lambda failure: failure.time, default=None)


def forget_failures(run: Path) -> None:
    """Remove the errors of an earlier start."""
    for path in (run / ERRORS).glob("rank-*"):
        path.unlink(missing_ok=True)


def rank_here() -> int:
    """The rank that torchrun gave this process, before a group exists; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))


def one_line(text: str) -> str:
    """The text without line breaks, cut where it is very long."""
    return " ".join(text.split())[:LONGEST]
