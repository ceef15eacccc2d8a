"""Audio on its way from a source into shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RawClip:
    """Decoded audio as the source has it."""

    samples_TC: np.ndarray
    """float32 in [-1, 1], [T] or [T, C]"""
    rate: int
    """Hz"""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Audio that could not be read or is not wanted; goes to quarantine with this reason."""

    reason: str
    seconds: float = 0.0
    """length of the audio that is lost by it, where it is known"""


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a file that is one clip. A stated end may lie up to SPAN_SLACK seconds behind the file's (rounded durations)."""

    start: float = 0.0
    seconds: float | None = None
    """None: to the end"""
    channel: int | None = None
    """None: all"""


WHOLE = Span()
SPAN_SLACK = 0.05
