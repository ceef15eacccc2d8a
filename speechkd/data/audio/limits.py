"""Limits on clips (`audio:` of a card), and limits of a process that decodes untrusted audio."""

from __future__ import annotations

import resource
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from speechkd.core.config import Config

MEMORY = 2 << 30
"""Bytes that a shard's process may allocate beyond its initial size; more for cards with long clips"""
MOST_DECODED = 128 << 20
"""Bytes that one clip may decode to; more if the card's longest clip at 48 kHz with all channels needs it"""
_limits: AudioLimits | None = None


class AudioLimits(Config):
    """Limits on a clip. Other clips go to quarantine, where their seconds are counted."""

    min_seconds: float = Field(default=0.05, ge=0)
    max_seconds: float = Field(default=30.0, gt=0)
    max_channels: int = Field(default=8, ge=1)
    over_long: Literal["refuse", "split"] = "refuse"
    """split: parts of at most `max_seconds`, cut where it is quiet, keys `<key>-part000`, metadata `part` and `parts`; no sample is lost"""
    whole_only: list[str] = ["transcript"]
    """metadata names that describe the whole clip and are dropped from its parts"""
    duration_field: str = ""
    """metadata name for each stored clip's duration in seconds; empty: not written"""
    min_rate: int = Field(default=8000, ge=1)
    """Hz; a clip of a lower rate lacks most of speech, and resampling does not bring it back"""
    max_peak: float = Field(default=2.0, gt=0)
    """largest sample, as a multiple of full scale: far above it, the numbers are of another scale, and all of the clip would be clipped"""
    max_clipped: float = Field(default=0.1, ge=0, le=1)
    """share of a clip's samples that are beyond full scale, or stand at it three or more in a row"""
    max_cancelled: float = Field(default=0.2, ge=0, le=1)
    """share of a clip's sound that falls silent when its channels are mixed, because they are of opposite phase"""
    max_dc: float = Field(default=0.125, ge=0)
    """distance of a clip's mean from zero, as a share of full scale"""
    max_zero_seconds: float | None = Field(default=None, ge=0)
    """longest stretch of exact zeros, as lost packets leave; unset: any"""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Limits on what conversion destroys came later: left out where unset, so that digests and published cards stay as they were."""
        said: dict[str, Any] = dump(self)
        return {name: value for name, value in said.items() if name not in CONVERSION or value != type(self).model_fields[name].default}


CONVERSION = ("min_rate", "max_peak", "max_clipped", "max_cancelled", "max_dc", "max_zero_seconds")
"""Limits on what conversion to 16 kHz mono of 16 bits would destroy (`gate.py`)"""


def limit_this_process(limits: AudioLimits) -> None:
    """Limit this process's memory, disable core files, and set the limits of `refused_header`. CPU time is limited per item elsewhere."""
    global _limits
    _limits = limits
    with open("/proc/self/statm", encoding="ascii") as stream:
        held = int(stream.read().split()[0]) * resource.getpagesize()
    room = MEMORY + int(min(limits.max_seconds, 14_400) * 48_000 * 4 * 6)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = held + room
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limited() -> bool:
    """Whether `limit_this_process` was called."""
    return _limits is not None


def refused_header(frames: int, rate: int, channels: int) -> str | None:
    """Why a clip with this header exceeds the process's limits, or None. Checked before decoding: 2 MB may decode to 5 GB."""
    if _limits is None:
        return None
    seconds = frames / rate
    if channels > _limits.max_channels:
        return f"{channels} channels, allowed 1 to {_limits.max_channels}"
    splits = getattr(_limits, "over_long", "refuse") == "split"
    if seconds > _limits.max_seconds and not splits:
        return f"{seconds:.3f} s, longer than {_limits.max_seconds:g} s"
    allowed = MOST_DECODED if not splits else 8 * MOST_DECODED
    allowed = max(allowed, int(_limits.max_seconds * 48_000 * 4 * _limits.max_channels))
    if frames * channels * 4 > allowed:
        return f"would decode to {frames * channels * 4 >> 20} MiB, allowed {allowed >> 20}"
    return None
