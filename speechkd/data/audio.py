"""Audio as shards hold it: 16 kHz, one channel, 16-bit FLAC; decoding and encoding in memory, under limits."""

from __future__ import annotations

import io
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from speechkd.data.sources.base import RawClip, Rejected

if TYPE_CHECKING:
    from speechkd.data.cards import AudioLimits

RATE = 16_000
"""Hz; every clip in a shard has this rate"""
HARD_SECONDS, HARD_CHANNELS, MAX_RATE = 4 * 3600.0, 64, 768_000
"""Bounds on what is decoded at all, before a card's own limits"""
MAX_KERNEL = 4_000_000
"""Taps of the resampling kernel: a rate without common factor with 16,000 (44,101 Hz, say) would need gigabytes"""


def decode_file(path: Path) -> RawClip | Rejected:
    """Decode a FLAC or PCM WAV file: float32 [T, C] in [-1, 1]. The header is checked before samples are read."""
    try:
        with path.open("rb") as stream:
            return _decode(stream)
    except OSError as error:
        return Rejected(f"cannot be opened: {error.strerror}")


def _decode(stream: BinaryIO) -> RawClip | Rejected:
    import soundfile

    magic = stream.read(12)
    if magic[:4] != b"fLaC" and not (magic[:4] == b"RIFF" and magic[8:] == b"WAVE"):
        return Rejected("is neither FLAC nor WAV")
    stream.seek(0)
    try:
        with soundfile.SoundFile(stream) as file:
            if not file.subtype.startswith(("PCM_", "FLOAT", "DOUBLE")):
                return Rejected(f"is WAV with encoding {file.subtype}, not PCM")
            if file.channels > HARD_CHANNELS or not 0 < file.samplerate <= MAX_RATE:
                return Rejected(f"header says {file.channels} channels at {file.samplerate} Hz")
            if file.frames > HARD_SECONDS * file.samplerate:
                return Rejected(f"header says {file.frames} samples, over {HARD_SECONDS:.0f} s")
            said = file.frames
            samples_TC = file.read(said, dtype="float32", always_2d=True)
            if len(samples_TC) != said:
                return Rejected(f"header says {said} samples, holds {len(samples_TC)}")
            return RawClip(samples_TC=samples_TC, rate=file.samplerate)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        return Rejected(f"cannot be decoded: {str(error).splitlines()[0]}")


def normalise(clip: RawClip, limits: AudioLimits) -> np.ndarray | Rejected:
    """A raw clip as 16 kHz mono float32 [T] in [-1, 1], or why the card refuses it. Channels are averaged."""
    samples_TC = np.asarray(clip.samples_TC, dtype=np.float32)
    if samples_TC.ndim == 1:
        samples_TC = samples_TC[:, None]
    if samples_TC.ndim != 2:
        return Rejected(f"has {samples_TC.ndim} dimensions")
    if not 0 < clip.rate <= MAX_RATE:
        return Rejected(f"sample rate {clip.rate} Hz")
    frames, channels = samples_TC.shape
    seconds = frames / clip.rate
    if not 1 <= channels <= limits.max_channels:
        return Rejected(f"{channels} channels, allowed 1 to {limits.max_channels}")
    if not frames or seconds < limits.min_seconds:
        return Rejected(f"{seconds:.3f} s, shorter than {limits.min_seconds:g} s")
    if seconds > limits.max_seconds:
        return Rejected(f"{seconds:.3f} s, longer than {limits.max_seconds:g} s")
    if not np.isfinite(samples_TC).all():
        return Rejected("holds NaN or infinite samples")
    mono_T = samples_TC[:, 0] if channels == 1 else samples_TC.mean(axis=1, dtype=np.float32)
    if clip.rate == RATE:
        return np.ascontiguousarray(mono_T)
    common = gcd(clip.rate, RATE)
    if (clip.rate // common) * (RATE // common) > MAX_KERNEL:
        return Rejected(f"sample rate {clip.rate} Hz has no usable ratio to {RATE} Hz")
    import torch

    with torch.inference_mode():
        resampled: np.ndarray = _resampler(clip.rate)(torch.from_numpy(np.ascontiguousarray(mono_T))).numpy()
    return resampled


@lru_cache(maxsize=16)
def _resampler(rate: int) -> Any:
    """torchaudio.functional.resample (windowed sinc) with its kernel kept: clips of a corpus mostly share one rate."""
    from torchaudio.transforms import Resample

    return Resample(rate, RATE)


def encode_flac(samples_T: np.ndarray) -> bytes:
    """16 kHz mono float [T] -> FLAC, 16 bit. Rounded and clipped here: the library's own conversion differs between versions."""
    import soundfile

    pcm_T = np.clip(np.rint(samples_T * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm_T, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
