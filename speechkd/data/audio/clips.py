"""Decodes audio files under limits and converts them to 16 kHz mono; encodes 16-bit FLAC and WAV."""

from __future__ import annotations

import io
import math
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkd.data.audio.gate import destroyed_by_conversion
from speechkd.data.audio.layout import FORMATS, layout_of
from speechkd.data.audio.limits import limited, refused_header
from speechkd.data.audio.raw import SPAN_SLACK, WHOLE, RawClip, Rejected, Span

if TYPE_CHECKING:
    import soundfile

    from speechkd.data.audio.limits import AudioLimits

RATE = 16_000
"""Hz; every clip in a shard has this rate"""
HARD_SECONDS, HARD_CHANNELS, MAX_RATE = 4 * 3600.0, 64, 768_000
"""Absolute limits on decoding; a card's own limits come on top"""
MAX_KERNEL = 4_000_000
"""Taps of the resampling kernel: a rate without a common factor with 16,000 (44,101 Hz, say) would need gigabytes"""
PREROLL = 32 * 1152
"""Samples decoded before a span: a frame of MP3 needs bits of earlier ones, so after a jump a decoder begins with silence"""
FRAMES_AT_ONCE = 1 << 20
"""Frames converted per step"""


class NeedsResampler(Exception):
    """The clip needs resampling with torch, but this process's memory limit leaves no room to load it (`shards/workers.py`)."""


def decode_file(path: Path, span: Span = WHOLE) -> RawClip | Rejected:
    """Decode an audio file (`layout.py` lists the formats): float32 [T, C]. What it holds is checked before samples are read."""
    try:
        with path.open("rb", buffering=0) as stream:
            return _decode(stream, span)
    except OSError as error:
        return Rejected(f"cannot be opened: {error.strerror}")


def decode_bytes(data: bytes, span: Span = WHOLE) -> RawClip | Rejected:
    """Decode the content of a file, as `decode_file` does."""
    return _decode(io.BytesIO(data), span)


def _decode(stream: io.FileIO | io.BytesIO, span: Span) -> RawClip | Rejected:
    kind, layout = layout_of(stream, span.seconds is None)
    # a span is checked by itself: what a file lacks may be elsewhere. The parts of a joined file are one sound
    if kind is None or layout.problem and (span.seconds is None or not layout.pieces and kind in ("MP3", "OGG")):
        return Rejected(layout.problem)
    if len(layout.pieces) < 2:
        return _read(io.BytesIO(layout.pieces[0]) if layout.pieces else stream, kind, span)
    return _joined([_read(io.BytesIO(piece), kind, WHOLE) for piece in layout.pieces], span)


def _joined(clips: list[RawClip | Rejected], span: Span) -> RawClip | Rejected:
    """The span of parts that follow one another."""
    parts = []
    for number, clip in enumerate(clips, 1):
        if isinstance(clip, Rejected):
            return Rejected(f"its part {number} of {len(clips)}: {clip.reason}", clip.seconds)
        parts.append(clip)
    kinds = {(part.rate, part.samples_TC.shape[1]) for part in parts}
    if len(kinds) > 1:
        return Rejected("its parts differ: " + ", ".join(f"{rate} Hz with {channels} channels" for rate, channels in sorted(kinds)))
    samples_TC, rate = np.concatenate([part.samples_TC for part in parts]), parts[0].rate
    refused = _refused(len(samples_TC), rate, samples_TC.shape[1], span)
    if refused:
        return refused
    first, count = _frames(len(samples_TC), rate, span)
    return RawClip(_channel(samples_TC[first : first + count], span), rate)


def _read(stream: io.FileIO | io.BytesIO, kind: str, span: Span) -> RawClip | Rejected:
    import soundfile

    stream.seek(0)
    # libsndfile reads a descriptor directly; for any other object it calls Python for every few bytes
    handle = stream.fileno() if isinstance(stream, io.FileIO) else stream
    try:
        with soundfile.SoundFile(handle, closefd=False) as file:
            if file.format not in FORMATS[kind]:
                return Rejected(f"is {file.format} that looks like {kind}")
            if kind not in ("FLAC", "OGG", "MP3") and not file.subtype.startswith(("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")):
                return Rejected(f"is {kind} with encoding {file.subtype}, not PCM, A-law or mu-law")
            refused = _refused(file.frames, file.samplerate, file.channels, span)
            if refused:
                return refused
            first, count = _frames(file.frames, file.samplerate, span)
            before = min(first, PREROLL) if kind in ("MP3", "OGG") else 0
            file.seek(first - before)
            samples_TC, held = _samples(file, before + count)  # in one call: SoundFile jumps after each
            if held != before + count:
                return Rejected(f"header says {count} samples, holds {max(0, held - before)}")
            return RawClip(_channel(samples_TC[before:], span), file.samplerate)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        reason = re.sub("^Error opening .*?: ", "", str(error).splitlines()[0])  # of an object in memory it names the address
        return Rejected(f"cannot be decoded: {reason}")


def _refused(frames: int, rate: int, channels: int, span: Span) -> Rejected | None:
    """Why a span of a file of this size is not read."""
    if channels > HARD_CHANNELS or not 0 < rate <= MAX_RATE:
        return Rejected(f"header says {channels} channels at {rate} Hz")
    if span.channel is not None and not 0 <= span.channel < channels:
        return Rejected(f"has {channels} channels, none is number {span.channel}")
    _, count = _frames(frames, rate, span)
    if count < 0:
        unit = "samples" if span.in_samples else "s"
        held = f"{frames} samples" if span.in_samples else f"{frames / rate:.3f} s"
        return Rejected(f"its part from {span.start:g} {unit} for {span.seconds or 0:g} {unit} is not inside {held}")
    if count > HARD_SECONDS * rate:
        return Rejected(f"header says {count} samples, over {HARD_SECONDS:.0f} s")
    refused = refused_header(count, rate, channels)
    return Rejected(refused, count / rate) if refused else None


def _channel(samples_TC: np.ndarray, span: Span) -> np.ndarray:
    return samples_TC if span.channel is None else samples_TC[:, span.channel : span.channel + 1]


def _samples(file: soundfile.SoundFile, count: int) -> tuple[np.ndarray, int]:
    """float32 [T, C] of the next `count` frames, and how many were read. Scales 16-bit audio itself, three times faster than libsndfile."""
    if file.subtype != "PCM_16":
        samples_TC: np.ndarray = file.read(count, dtype="float32", always_2d=True)
        return samples_TC, len(samples_TC)
    samples_TC = np.empty((count, file.channels), np.float32)
    held = 0
    while held < count:
        pcm_TC = file.read(min(FRAMES_AT_ONCE, count - held), dtype="int16", always_2d=True)
        if not len(pcm_TC):
            break
        np.multiply(pcm_TC, np.float32(1 / 32768), out=samples_TC[held : held + len(pcm_TC)])
        held += len(pcm_TC)
    return samples_TC, held


def _frames(total: int, rate: int, span: Span) -> tuple[int, int]:
    """(first frame, number of frames) of a span; the number is -1 if the span is outside the file."""
    scale = 1 if span.in_samples else rate
    first = round(span.start * scale)
    count = total - first if span.seconds is None else round(span.seconds * scale)
    if first < 0 or first > total or count < 0 or first + count > total + SPAN_SLACK * rate:
        return first, -1
    return first, min(count, total - first)


def normalise(clip: RawClip, limits: AudioLimits) -> np.ndarray | Rejected:
    """Convert a raw clip to 16 kHz mono float32 [T] in [-1, 1], or say why the card rejects it. Channels are averaged."""
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
        return Rejected(f"{channels} channels, allowed 1 to {limits.max_channels}", seconds)
    if not frames or seconds < limits.min_seconds:
        return Rejected(f"{seconds:.3f} s, shorter than {limits.min_seconds:g} s", seconds)
    if seconds > limits.max_seconds and limits.over_long == "refuse":
        return Rejected(f"{seconds:.3f} s, longer than {limits.max_seconds:g} s", seconds)
    if not np.isfinite(samples_TC).all():
        return Rejected("holds NaN or infinite samples", seconds)
    mono_T = samples_TC[:, 0] if channels == 1 else samples_TC.mean(axis=1, dtype=np.float32)
    if destroyed := destroyed_by_conversion(samples_TC, mono_T, clip.rate, limits):
        return destroyed
    if clip.rate == RATE:
        return np.ascontiguousarray(mono_T)
    common = math.gcd(clip.rate, RATE)
    if (clip.rate // common) * (RATE // common) > MAX_KERNEL:
        return Rejected(f"sample rate {clip.rate} Hz has no usable ratio to {RATE} Hz", seconds)
    if limited() and "torch" not in sys.modules:
        raise NeedsResampler
    import torch

    with torch.inference_mode():
        resampled: np.ndarray = _resampler(clip.rate)(torch.from_numpy(np.ascontiguousarray(mono_T))).numpy()
    return resampled


@lru_cache(maxsize=16)
def _resampler(rate: int) -> Any:
    """torchaudio's windowed-sinc resampler, cached: clips of a corpus mostly share one rate."""
    from torchaudio.transforms import Resample

    return Resample(rate, RATE)


def pieces(samples_T: np.ndarray, limits: AudioLimits) -> list[np.ndarray]:
    """Split [T] into parts of at most `max_seconds`, cut at the quietest 20 ms of each part's last quarter. No sample is lost."""
    longest, shortest, frame = int(limits.max_seconds * RATE), math.ceil(limits.min_seconds * RATE), RATE // 50
    out = []
    while len(samples_T) > longest:
        last = max(min(longest, len(samples_T) - shortest), 1)  # the remainder must reach the minimum length too
        first = min(max(last - longest // 4, shortest, 1), last)
        loudness = [float(np.square(samples_T[at : at + frame]).sum()) for at in range(first, last - frame + 1, frame)]
        cut = first + frame * int(np.argmin(loudness)) + frame // 2 if loudness else last
        out.append(samples_T[:cut])
        samples_T = samples_T[cut:]
    return [*out, samples_T]


def encode_flac(samples_T: np.ndarray) -> bytes:
    """16 kHz mono float [T] -> FLAC, 16 bit."""
    return _encode(samples_T, "FLAC")


def encode_wav(samples_T: np.ndarray) -> bytes:
    """16 kHz mono float [T] -> WAV, 16 bit; lossless for clips from a shard."""
    return _encode(samples_T, "WAV")


def _encode(samples_T: np.ndarray, kind: str) -> bytes:
    """Rounds and clips here, because the library's own conversion differs between versions."""
    import soundfile

    pcm_T = np.clip(np.rint(samples_T * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, "PCM_16", format=kind) as file:
        file.buffer_write(pcm_T.data, dtype="int16")
    return buffer.getvalue()
