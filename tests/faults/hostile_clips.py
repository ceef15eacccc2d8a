"""Hostile audio: what a file that a list names may hold, and how it may be named."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile


class Bomb:
    """Would leave a file if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


PICKLE = pickle.dumps(Bomb())


def wav(frames: int = 1600, rate: int = 16_000, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full((frames, channels), 0.1, np.float32), rate, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def flac(frames: int = 1600, rate: int = 16_000, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros((frames, channels), np.float32), rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def flac_says(frames: int, rate: int = 16_000, channels: int = 1) -> bytes:
    """A FLAC whose STREAMINFO lies."""
    word = (rate << 44) | ((channels - 1) << 41) | (15 << 36) | frames
    return patched(flac(), 18, word.to_bytes(8, "big"))


def nan_wav() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.array([np.nan, np.inf] * 800, np.float32), 16_000, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


CLIPS: dict[str, Callable[[], bytes]] = {
    "pickle.wav": lambda: PICKLE,
    "torch.flac": lambda: zipped("archive/data.pkl", PICKLE),
    "npz.wav": lambda: zipped("x.npy", bytes(50 << 20)),
    "gzip.flac": lambda: gzip.compress(bytes(100 << 20)),
    "empty.wav": lambda: b"",
    "magic-alone.flac": lambda: b"fLaC",
    "riff-alone.wav": lambda: b"RIFF\xff\xff\xff\xffWAVE",
    "cut.flac": lambda: flac()[:60],
    "cut.wav": lambda: wav()[:50],
    "hour-of-8-channels.flac": lambda: flac(3600 * 48_000 // 8, 48_000, 8),
    "hour.flac": lambda: flac(3600 * 16_000),
    "lies-of-2-to-the-36.flac": lambda: flac_says((1 << 36) - 1),
    "lies-of-29-seconds.flac": lambda: flac_says(29 * 16_000),
    "lies-of-no-length.flac": lambda: flac_says(0),
    "lies-of-rate-zero.flac": lambda: flac_says(1600, rate=0),
    "lies-of-655350-hertz.flac": lambda: flac_says(1600, rate=655_350),
    "wav-of-4-gigabytes.wav": lambda: patched(wav(), 40, b"\xff\xff\xff\xff"),
    "wav-of-65535-channels.wav": lambda: patched(wav(), 22, b"\xff\xff"),
    "wav-of-zero-channels.wav": lambda: patched(wav(), 22, b"\0\0"),
    "wav-of-2-gigahertz.wav": lambda: patched(wav(), 24, struct.pack("<I", 2**31)),
    "wav-of-zero-hertz.wav": lambda: patched(wav(), 24, b"\0\0\0\0"),
    "wav-of-zero-bits.wav": lambda: patched(wav(), 34, b"\0\0"),
    "wav-of-negative-chunk.wav": lambda: patched(wav(), 16, b"\xf0\xff\xff\xff"),
    "prime-rate.wav": lambda: wav(44_101, 44_101),
    "nan.wav": nan_wav,
    "noise.flac": lambda: b"fLaC" + np.random.default_rng(0).bytes(20_000),
    "noise.wav": lambda: wav()[:44] + b"LIST" + struct.pack("<I", 2**31 - 1) + np.random.default_rng(0).bytes(2000),
    "html.wav": lambda: b"<html><script>alert(1)</script></html>",
    "elf.wav": lambda: b"\x7fELF" + bytes(200),
    "too-many-padding-blocks.flac": lambda: b"fLaC" + flac()[4:42] + b"\x01\xff\xff\xff" * 4000,
}
"""Files that a list names as audio"""

NAMES = [
    "| touch executed",
    "pipe:touch executed",
    "$(touch executed).wav",
    "; touch executed",
    "../outside.wav",
    "/etc/passwd",
    "x/../../outside.wav",
    "file:///etc/passwd",
    "http://127.0.0.1:9/a.wav",
    "s3://bucket/a.wav",
    "\0.wav",
    "\ud800.wav",
    "a" * 5000,
    "/dev/zero",
    "link-out.wav",
    "link-loop.wav",
    "fifo.wav",
    ".",
]
"""Names that a list gives as audio"""
