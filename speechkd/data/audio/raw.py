"""Types for audio between a source and the shards: raw clips, rejected clips, spans of files."""

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
    """Audio that cannot be read or exceeds the card's limits. It goes to quarantine with this reason."""

    reason: str
    seconds: float = 0.0
    """length of the rejected audio; 0 if unknown"""
    limit: str = ""
    """the key of the card's `audio` block that it is over, for limits on what conversion destroys"""


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a file that is one clip. Its end may exceed the file's by SPAN_SLACK seconds, since durations are rounded."""

    start: float = 0.0
    seconds: float | None = None
    """None: to the end"""
    channel: int | None = None
    """None: all"""
    in_samples: bool = False
    """`start` and `seconds` are samples of the file's own rate"""


WHOLE = Span()
SPAN_SLACK = 0.05
