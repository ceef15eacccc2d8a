"""What a clip may be, and what a process that decodes untrusted audio refuses."""

from __future__ import annotations

import resource
from typing import Literal

from pydantic import Field

from speechkd.core.config import Config

MEMORY = 2 << 30
"""Bytes that a block's process may add to what it starts with, more for cards with long clips"""
MOST_DECODED = 128 << 20
"""Bytes that one clip may decode to, or what the card's longest clip takes at 48 kHz with all its channels, if that is more"""
_limits: AudioLimits | None = None


class AudioLimits(Config):
    """What a clip may be; anything else goes to quarantine, its seconds counted."""

    min_seconds: float = Field(default=0.05, ge=0)
    max_seconds: float = Field(default=30.0, gt=0)
    max_channels: int = Field(default=8, ge=1)
    over_long: Literal["refuse", "split"] = "refuse"
    """split: parts of at most `max_seconds`, cut where it is quiet, keys `<key>-part000`, metadata `part` and `parts`; no sample is lost"""
    whole_only: list[str] = ["transcript"]
    """metadata names that say something of the whole clip alone, and that its parts do not carry"""
    duration_field: str = ""
    """metadata name under which each clip's seconds, as stored, are written; empty: none"""


def limit_this_process(limits: AudioLimits) -> None:
    """Memory, core files and what a child's `refused_header` lets through; its CPU time is limited item by item."""
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
    """Whether this process lives under `limit_this_process`."""
    return _limits is not None


def refused_header(frames: int, rate: int, channels: int) -> str | None:
    """Why a clip whose header says this is not decoded under this process's limits, before a sample is read: 2 MB may be 5 GB."""
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
