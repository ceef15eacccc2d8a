"""Decodes the FLAC members of shards in one call outside the GIL: dr_flac takes half the time of libsndfile (tests/bench)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from speechkd.core.errors import DataError
from speechkd.data.audio.clips import HARD_SECONDS, RATE

HEADER = 42
"""Bytes up to the end of STREAMINFO, always the first metadata block"""


class StreamInfo(NamedTuple):
    """The STREAMINFO block of a FLAC stream (RFC 9639, 8.2)."""

    rate: int
    channels: int
    bits: int
    frames: int


def stream_info(data: bytes, where: str) -> StreamInfo:
    """The header of a FLAC stream. Raises DataError naming `where` if it has none."""
    if len(data) < HEADER or data[:4] != b"fLaC" or data[4] & 0x7F:
        raise DataError(f"{where}: cannot be decoded (no FLAC header)")
    packed = int.from_bytes(data[18:26], "big")
    return StreamInfo(packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & (1 << 36) - 1)


def decode_flac(data: bytes, where: str, seconds: float | None = None) -> np.ndarray:
    """A shard's FLAC member -> float32 [T] in [-1, 1] at 16 kHz. Raises DataError naming `where`.

    Checks the header first, also against `seconds` from the index, because a decoder allocates what the header states.
    """
    import miniaudio

    info = stream_info(data, where)
    if info.rate != RATE or info.channels != 1:
        raise DataError(f"{where}: must be {RATE} Hz mono, is {info.rate} Hz with {info.channels} channels")
    if not 0 < info.frames <= HARD_SECONDS * RATE:
        raise DataError(f"{where}: header says {info.frames} samples, allowed 1 to {HARD_SECONDS * RATE:.0f}")
    if seconds is not None and abs(info.frames - seconds * RATE) > 1:
        raise DataError(f"{where}: header says {info.frames} samples, the index {seconds:.3f} s")
    try:
        samples = miniaudio.flac_read_f32(data).samples
    except miniaudio.MiniaudioError as error:
        raise DataError(f"{where}: cannot be decoded ({error})") from None
    if len(samples) != info.frames:
        raise DataError(f"{where}: header says {info.frames} samples, holds {len(samples)}")
    out_T: np.ndarray = np.frombuffer(samples, dtype=np.float32)
    return out_T
