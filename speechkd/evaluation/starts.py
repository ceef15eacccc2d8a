"""The starts of a training, read from its journal: when each began, how far it came, how long it took, how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from speechkd.tracking.records import LATEST, Record

DIED = "its launcher died without a word"


@dataclass(slots=True)
class Start:
    """One start of a training."""

    began_ms: int
    at: int
    """steps that were done before"""
    reached: int
    """the last step that it journalled"""
    ended_ms: int
    status: str = "RUNNING"
    reason: str = ""

    @property
    def seconds(self) -> float:
        """From its beginning to its end, or to its last record."""
        return (self.ended_ms - self.began_ms) / 1000


def starts_of(records: Iterable[Record]) -> list[Start]:
    """All starts, in order. One that left no end, and is not the last, died with its launcher."""
    starts: list[Start] = []
    for record in records:
        open_start = starts[-1] if starts and starts[-1].status == "RUNNING" else None
        if record["kind"] == "status" and record["status"] == "RUNNING":
            if open_start is not None:
                open_start.status, open_start.reason = "FAILED", DIED
            reached = starts[-1].reached if starts else 0
            starts.append(Start(record["time_ms"], reached, reached, record["time_ms"]))
        elif open_start is not None:
            open_start.ended_ms = record["time_ms"]
            if record["kind"] == "status":
                open_start.status, open_start.reason = record["status"], str(record.get("reason", ""))
            elif record["kind"] == "metric" and not record.get(LATEST):
                open_start.reached = max(open_start.reached, record["step"])
    return starts
