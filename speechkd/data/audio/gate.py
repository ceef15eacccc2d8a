"""What conversion to 16 kHz mono of 16 bits would destroy in a clip, measured before it is done; limits are the card's."""

from __future__ import annotations

import math

import numpy as np

from speechkd.data.audio.limits import AudioLimits
from speechkd.data.audio.raw import Rejected

FULL = 32766 / 32768
"""|sample| at or above this is full scale; three in a row count as clipping"""
RUN = 3
FRAMES_PER_S = 10
"""Frames in which the loss by mixing channels is measured"""
CANCELLED_DB = 10.0
"""A frame is cancelled if the mix is this much below what channels without relation give (10 log10 of their number below their mean)"""
QUIET = 1e-6
"""Mean square (-60 dBFS) below which a frame holds no sound that could be lost"""


def destroyed_by_conversion(samples_TC: np.ndarray, mono_T: np.ndarray, rate: int, limits: AudioLimits) -> Rejected | None:
    """Which of the card's limits on conversion a clip of finite samples is over, or None. `mono_T` is the mix of its channels."""
    seconds = len(samples_TC) / rate

    def over(limit: str, reason: str) -> Rejected:
        return Rejected(f"{reason} (audio.{limit})", seconds, limit)

    if rate < limits.min_rate:
        return over("min_rate", f"sample rate {rate} Hz, allowed from {limits.min_rate}")
    peak = max(float(samples_TC.max()), -float(samples_TC.min()))
    if peak > limits.max_peak:
        return over("max_peak", f"a peak of {peak:.4g} times full scale, allowed {limits.max_peak:g}")
    if peak >= FULL and (share := int(clipped(samples_TC).sum()) / samples_TC.size) > limits.max_clipped:
        return over("max_clipped", f"{share:.1%} of its samples are clipped, allowed {limits.max_clipped:.1%}")
    if samples_TC.shape[1] > 1 and (share := cancelled(samples_TC, mono_T, rate)) > limits.max_cancelled:
        channels = samples_TC.shape[1]
        reason = f"mixing its {channels} channels silences {share:.1%} of it (opposite phases), allowed {limits.max_cancelled:.1%}"
        return over("max_cancelled", f"{reason}: store one of them")
    offset = float(mono_T.mean(dtype=np.float64))
    if abs(offset) > limits.max_dc:
        return over("max_dc", f"its mean is {offset:.3f} of full scale (DC), allowed {limits.max_dc:g}")
    if limits.max_zero_seconds is not None and (stretch := longest_zeros(mono_T) / rate) > limits.max_zero_seconds:
        return over("max_zero_seconds", f"{stretch:.3f} s of nothing but zeros, allowed {limits.max_zero_seconds:g} s")
    return None


def clipped(samples_TC: np.ndarray) -> np.ndarray:
    """Which samples ([T] or [T, C]) are beyond full scale, or at it with RUN - 1 neighbours: bool of the same shape."""
    size = np.abs(samples_TC)
    full, out = size >= FULL, size > 1.0
    runs = full[2:] & full[1:-1] & full[:-2]
    for shift in range(RUN):
        out[shift : shift + len(runs)] |= runs
    return out


def cancelled(samples_TC: np.ndarray, mono_T: np.ndarray, rate: int) -> float:
    """Share of the frames with sound in which mixing takes the sound away."""
    frame, (count, channels) = max(1, rate // FRAMES_PER_S), samples_TC.shape
    starts = np.arange(0, count, frame)
    sizes = np.diff(starts, append=count)
    of_channels = np.add.reduceat(np.square(samples_TC, dtype=np.float64).sum(axis=1), starts) / sizes / channels
    of_mix = np.add.reduceat(np.square(mono_T, dtype=np.float64), starts) / sizes
    sounds = of_channels > QUIET
    lost = of_mix < of_channels / channels * math.pow(10, -CANCELLED_DB / 10)
    return float((lost & sounds).sum() / max(1, sounds.sum()))


def longest_zeros(mono_T: np.ndarray) -> int:
    """Samples of the longest stretch of exact zeros."""
    heard = np.flatnonzero(mono_T)
    return int(np.diff(heard, prepend=-1, append=len(mono_T)).max()) - 1
