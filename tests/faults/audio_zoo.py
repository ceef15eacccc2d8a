"""An audio zoo: one sound in every format, rate and shape in which data sets have it, whole, joined, cut, and with headers that lie."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import soundfile

from tests.data.mp3 import mp3_frames

LEVEL, SECONDS = 0.2, 1.5


class Animal(NamedTuple):
    """A file, and what it holds."""

    name: str
    data: bytes
    seconds: float = SECONDS
    rms: float = LEVEL
    reason: str = ""
    """how its reason in quarantine begins; empty: it is read"""


def sound(seconds: float = SECONDS, rate: int = 16_000, channels: int = 1, level: float = LEVEL) -> np.ndarray:
    """float64 [T, C]: a chord of known RMS."""
    at = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * 220 * at) + np.sin(2 * np.pi * 660 * at)
    return np.repeat((level * wave)[:, None], channels, axis=1)


def encoded(samples_TC: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str = "PCM_16", order: str = "FILE") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples_TC, rate, format=form, subtype=subtype, endian=order)
    return stream.getvalue()


def mp3(seconds: float = SECONDS, rate: int = 16_000, channels: int = 1, variable: bool = True) -> bytes:
    stream = io.BytesIO()
    mode = "VARIABLE" if variable else "CONSTANT"
    soundfile.write(
        stream, sound(seconds, rate, channels), rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.1
    )
    return stream.getvalue()


def level(*files: bytes) -> float:
    """RMS of what a codec made of the sound, by libsndfile's reading of good files."""
    return float(np.sqrt(np.mean(np.square(np.concatenate([soundfile.read(io.BytesIO(data), always_2d=True)[0] for data in files])))))


def zoo() -> Iterator[Animal]:
    yield from _formats()
    yield from _wavs()
    yield from _flacs()
    yield from _oggs()
    yield from _mp3s()
    yield from _others()


def _formats() -> Iterator[Animal]:
    for rate in (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000):
        for form in ("WAV", "FLAC"):
            yield Animal(f"{form}-{rate}", encoded(sound(rate=rate), rate, form))
    for form, subtypes in {
        "WAV": ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"),
        "WAVEX": ("PCM_16", "PCM_24", "FLOAT"),
        "RF64": ("PCM_16", "FLOAT"),
        "W64": ("PCM_16", "PCM_24"),
        "AIFF": ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "ULAW"),
        "AU": ("PCM_16", "ULAW"),
        "CAF": ("PCM_16", "FLOAT"),
        "NIST": ("PCM_16", "ULAW"),
        "FLAC": ("PCM_S8", "PCM_24"),
        "OGG": ("VORBIS", "OPUS"),
    }.items():
        for subtype in subtypes:
            data = encoded(sound(), form=form, subtype=subtype)
            yield Animal(f"{form}-{subtype}", data, rms=level(data))
    for channels in (2, 6, 8):
        for form in ("WAV", "FLAC", "OGG"):
            yield Animal(
                f"{form}-{channels}-channels", encoded(sound(channels=channels), form=form, subtype="VORBIS" if form == "OGG" else "PCM_16")
            )
    yield Animal("rifx", encoded(sound(), order="BIG"))


def _wavs() -> Iterator[Animal]:
    whole, rf64, w64 = (encoded(sound(), form=form) for form in ("WAV", "RF64", "W64"))
    size = len(whole) - 44
    for name, riff, said in (("0", 0, 0), ("ff", 2**32 - 1, 2**32 - 1), ("sox", 0x7FFFFFFF, 0x7FFFFFFF - 36), ("0-alone", size + 36, 0)):
        yield Animal(f"wav-size-{name}", whole[:4] + struct.pack("<I", riff) + whole[8:40] + struct.pack("<I", said) + whole[44:])
    at = rf64.index(b"ds64") + 8
    for name, said in (("0", 0), ("ff", 2**64 - 1)):
        yield Animal(f"rf64-size-{name}", rf64[: at + 8] + struct.pack("<Q", said) + rf64[at + 16 :])
    yield Animal("bw64", b"BW64" + rf64[4:])
    junk = b"LIST" + struct.pack("<I", 5) + b"INFO\0"
    yield Animal("wav-odd-chunk", whole[:36] + junk + b"\0" + whole[36:])
    yield Animal("wav-odd-chunk-without-padding", whole[:36] + junk + whole[36:])
    yield Animal("wav-bext", whole[:12] + b"bext" + struct.pack("<I", 602) + bytes(602) + whole[12:])
    yield Animal("wav-id3-behind", whole + b"id3 " + struct.pack("<I", 4) + b"abcd")
    yield Animal("wav-id3-before", b"ID3\3\0\0\0\0\1\0" + bytes(128) + whole)
    yield Animal("wav-padded", whole + bytes(2048))
    yield Animal("wav-cut", whole[:-4000], reason=f"header says {size} bytes of audio, holds {size - 4000}")
    yield Animal("wav-joined", whole + whole, reason=f"holds another file after its end: {len(whole)} bytes")
    less = whole[:40] + struct.pack("<I", 16_000) + whole[44:]
    yield Animal("wav-of-less", less, reason=f"{size - 16_000} bytes are left over after the audio")
    yield Animal("wav-without-audio", whole[:40] + bytes(4), reason="0.000 s, shorter than")
    yield Animal("rf64-cut", rf64[:-4000], reason=f"header says {size} bytes of audio, holds {size - 4000}")
    yield Animal("rf64-joined", rf64 + rf64, reason="holds another file after its end")
    yield Animal("w64-cut", w64[:-4000], reason=f"header says {size} bytes of audio, holds {size - 4000}")
    yield Animal("w64-joined", w64 + w64, reason=f"{len(w64)} bytes are left over")
    for form in ("AIFF", "AU", "CAF", "NIST"):
        one = encoded(sound(), form=form)
        yield Animal(f"{form}-cut", one[:-4000], reason="header says")
        yield Animal(f"{form}-joined", one + one, reason="holds another file" if form == "AIFF" else f"{len(one)} bytes are left over")
    yield Animal("adpcm", encoded(sound(), subtype="IMA_ADPCM"), reason="is WAV with encoding IMA_ADPCM, not PCM")


def flac_says(data: bytes, samples: int) -> bytes:
    return data[:18] + (int.from_bytes(data[18:26], "big") >> 36 << 36 | samples).to_bytes(8, "big") + data[26:]


def _flacs() -> Iterator[Animal]:
    for rate, channels in ((16_000, 1), (44_100, 2)):
        whole = encoded(sound(rate=rate, channels=channels), rate, "FLAC")
        samples = round(SECONDS * rate)
        name = f"flac-{rate}-{channels}"
        yield Animal(f"{name}-streamed", flac_says(whole, 0))
        yield Animal(f"{name}-tagged", whole + b"TAG" + bytes(125))
        yield Animal(f"{name}-id3", b"ID3\3\0\0\0\0\1\0" + bytes(128) + whole)
        yield Animal(f"{name}-padded", whole + bytes(700))
        yield Animal(
            f"{name}-says-less", flac_says(whole, samples // 2), reason=f"header says {samples // 2} samples, holds frames of {samples}"
        )
        yield Animal(
            f"{name}-says-more", flac_says(whole, 2 * samples), reason=f"header says {2 * samples} samples, holds frames of {samples}"
        )
        for what, said in (("Hz", (8_000 << 12, 0xFFFFF << 12)), ("bits", (23 << 4, 31 << 4)), ("channels", (3 << 9, 7 << 9))):
            packed = int.from_bytes(whole[18:22], "big") & ~said[1] | said[0]
            lies = whole[:18] + packed.to_bytes(4, "big") + whole[22:]
            yield Animal(
                f"{name}-other-{what}", lies, reason=f"header says {({'Hz': 8_000, 'bits': 24, 'channels': 4})[what]} {what}, its frames"
            )
        yield Animal(f"{name}-joined", whole + whole, reason="holds another FLAC file after its end")
        yield Animal(f"{name}-streamed-joined", flac_says(whole, 0) * 2, reason="holds another FLAC file after its end")
        yield Animal(f"{name}-cut", whole[: len(whole) // 2], reason=f"header says {samples} samples, holds frames of")
        yield Animal(f"{name}-cut-in-its-last-frame", whole[:-40], reason="its last frame is cut or damaged")
        yield Animal(f"{name}-streamed-cut", flac_says(whole, 0)[: len(whole) // 2], reason="its last frame is cut or damaged")
        yield Animal(f"{name}-with-noise-behind", whole + np.random.default_rng(0).bytes(500), reason="its last frame is cut or damaged")


def in_ogg(flac: bytes, size: int = 2000) -> bytes:
    """FLAC in Ogg, as ffmpeg and flac write it; checksums left out."""
    first = b"\x7fFLAC\1\0\0\1" + flac[:42]
    parts = [first, *(flac[at : at + size] for at in range(42, len(flac), size))]
    out = b""
    for number, part in enumerate(parts):
        lacing = bytes([255] * (len(part) // 255) + [len(part) % 255])
        flags = 2 if number == 0 else 4 if number == len(parts) - 1 else 0
        out += (
            b"OggS\0"
            + bytes([flags])
            + bytes(8)
            + b"\1\0\0\0"
            + struct.pack("<I", number)
            + bytes(4)
            + bytes([len(lacing)])
            + lacing
            + part
        )
    return out


def _pages(data: bytes) -> list[int]:
    return [at for at in range(len(data)) if data[at : at + 5] == b"OggS\0"]


def _oggs() -> Iterator[Animal]:
    for rate, channels in ((16_000, 1), (44_100, 2)):
        flac = encoded(sound(rate=rate, channels=channels), rate, "FLAC")
        samples = round(SECONDS * rate)
        inside = in_ogg(flac_says(flac, 0))
        yield Animal(f"flac-in-ogg-{rate}", in_ogg(flac))
        yield Animal(f"flac-in-ogg-{rate}-streamed", inside)
        yield Animal(f"flac-in-ogg-{rate}-chained", inside + inside, 2 * SECONDS)
        yield Animal(f"flac-in-ogg-{rate}-cut", in_ogg(flac[: len(flac) // 2]), reason=f"header says {samples} samples, holds frames of")
    for codec in ("VORBIS", "OPUS"):
        whole, other = (encoded(sound(seconds), form="OGG", subtype=codec) for seconds in (SECONDS, 1.0))
        at = _pages(whole)
        yield Animal(f"{codec}-chained", whole + other, SECONDS + 1.0, level(whole, other))
        yield Animal(f"{codec}-cut", whole[:-100], reason="ends within a page")
        yield Animal(f"{codec}-without-its-last-page", whole[: at[-1]], reason="no page ends its stream")
        yield Animal(f"{codec}-with-noise-behind", whole + b"noise" * 30, reason="150 bytes from byte")
        long = encoded(np.random.default_rng(0).normal(0, 0.1, (16_000 * 12, 1)), form="OGG", subtype=codec)
        gap = _pages(long)
        yield Animal(f"{codec}-without-a-page", long[: gap[3]] + long[gap[4] :], reason="pages 3 to 3 are missing")
        yield Animal(f"{codec}-in-parallel", whole[: at[1]] + other[: at[1]] + whole[at[1] :], reason="holds streams side by side")


def _mp3s() -> Iterator[Animal]:
    for rate, channels in ((16_000, 1), (24_000, 2), (44_100, 2), (48_000, 1)):
        vbr, cbr, other = mp3(rate=rate, channels=channels), mp3(rate=rate, channels=channels, variable=False), mp3(1.0, rate, channels)
        name = f"mp3-{rate}-{channels}"
        frames, step = mp3_frames(vbr), 1152 if rate > 24_000 else 576
        others = mp3_frames(other)
        bare = vbr[frames[1] :]
        bare_s = (len(frames) - 1) * step / rate
        bare_rms = LEVEL * (SECONDS / bare_s) ** 0.5
        two_s = bare_s + (len(others) - 1) * step / rate
        two_rms = LEVEL * ((SECONDS + 1) / two_s) ** 0.5
        half_s = SECONDS + (len(others) - 1) * step / rate
        yield Animal(f"{name}-vbr", vbr)
        yield Animal(f"{name}-cbr", cbr, rms=level(cbr))
        yield Animal(f"{name}-tags", b"ID3\3\0\0\0\0\1\0" + bytes(128) + cbr + b"TAG" + bytes(125), rms=level(cbr))
        yield Animal(f"{name}-zeros-before", bytes(600) + vbr)
        yield Animal(f"{name}-zeros-behind", vbr + bytes(600))
        yield Animal(f"{name}-without-header", bare, bare_s, bare_rms)
        yield Animal(f"{name}-joined", vbr + other, SECONDS + 1)
        yield Animal(f"{name}-joined-cbr", cbr + other + cbr, 2 * SECONDS + 1, level(cbr, other, cbr))
        yield Animal(f"{name}-joined-without-headers", bare + other[others[1] :], two_s, two_rms)
        yield Animal(f"{name}-header-of-the-first", vbr + other[others[1] :], half_s, LEVEL * ((SECONDS + 1) / half_s) ** 0.5)
        yield Animal(f"{name}-cut", vbr[: len(vbr) * 2 // 3], reason=f"header says {len(frames) - 1} frames, holds")
        yield Animal(f"{name}-without-header-cut", bare[:-20], reason="its last frame is cut: 20 bytes are missing")
        yield Animal(f"{name}-with-noise-behind", vbr + b"noise" * 100, reason=f"500 bytes from byte {len(vbr)} on are no MP3 frames")
    yield Animal("mp3-of-two-rates", mp3(rate=16_000) + mp3(rate=24_000), reason="its parts differ: 16000 Hz mono then 24000 Hz mono")


def _others() -> Iterator[Animal]:
    for name, first, said in (
        ("m4a", b"\0\0\0\x20ftypM4A \0\0\0\0", "MPEG-4"),
        ("webm", b"\x1aE\xdf\xa3\x9fB\x86\x81\1", "Matroska or WebM"),
        ("amr", b"#!AMR\n", "AMR"),
        ("aac", b"\xff\xf1\x50\x80", "AAC"),
        ("mp2", b"\xff\xfd\x84\x04", "MPEG audio layer II"),
        ("wma", b"0&\xb2u\x8ef\xcf\x11", "ASF"),
        ("wavpack", b"wvpk", "WavPack"),
        ("avi", b"RIFF\0\1\0\0AVI LIST", "RIFF AVI"),
        ("html", b"<!DOCTYPE html>", "a web page"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a pointer of Git LFS"),
        ("gzip", b"\x1f\x8b\x08", "gzip"),
    ):
        yield Animal(name, first + bytes(500), reason=f"is neither FLAC nor WAV, Ogg or MP3: it is {said}")
    yield Animal("empty", b"", reason="is empty: 0 bytes")
    yield Animal("zeros", bytes(4000), reason="is neither FLAC nor WAV, Ogg or MP3: it begins with 64 zero bytes")
    sphere = encoded(sound(), form="NIST").replace(b"sample_coding -s3 pcm", b"sample_coding -s26 pcm,embedded-shorten-v2.00", 1)
    yield Animal("shortened-sphere", sphere, reason="is NIST SPHERE with encoding pcm,embedded-shorten")
    yield Animal("speex", b"OggS\0\2" + bytes(8) + b"\1\0\0\0" + bytes(8) + b"\1\x50Speex   " + bytes(72), reason="is Ogg with Speex")
