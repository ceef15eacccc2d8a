"""Shards' FLAC: the same numbers as libsndfile gives, and one clear error for whatever is not what it says."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import soundfile

from speechkd.core.errors import DataError
from speechkd.data.audio.clips import encode_flac
from speechkd.data.audio.flac import StreamInfo, decode_flac, stream_info
from tests.data.corpus import tone


def noisy(seconds: float, seed: int = 0) -> np.ndarray:
    noise_T = np.random.default_rng(seed).standard_normal(round(seconds * 16_000)).astype(np.float32)
    return tone(seconds, 16_000, 300)[:, 0] + 0.1 * noise_T


@pytest.mark.parametrize("seconds", [1 / 16_000, 0.01, 1.0, 7.3])
@pytest.mark.parametrize("level", [0.0, 1e-3, 0.5, 4.0])
def test_the_same_numbers_as_libsndfile(seconds: float, level: float) -> None:
    data = encode_flac(level * noisy(seconds))
    samples_T = decode_flac(data, "x")
    assert samples_T.dtype == np.float32 and np.array_equal(samples_T, soundfile.read(io.BytesIO(data), dtype="float32")[0])
    assert stream_info(data, "x") == StreamInfo(16_000, 1, 16, samples_T.size)


def flac(rate: int, channels: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(0.1, rate, 300, channels), rate, format="FLAC")
    return out.getvalue()


def lying(frames: int) -> bytes:
    data = bytearray(encode_flac(noisy(0.5)))
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data, text",
    [
        (flac(8_000, 1), "is 8000 Hz with 1 channels"),
        (flac(16_000, 2), "is 16000 Hz with 2 channels"),
        (b"", "no FLAC header"),
        (b"RIFF" + bytes(100), "no FLAC header"),
        (lying(0), "says 0 samples"),
        (lying((1 << 36) - 1), "says 68719476735 samples, allowed"),
        (lying(9_000), "says 9000 samples, holds 8000"),
        (encode_flac(noisy(2))[:9_000], "says 32000 samples, holds"),
    ],
)
def test_what_is_not_a_clip_is_named(data: bytes, text: str) -> None:
    with pytest.raises(DataError, match=f"^shard: member: .*{text}"):
        decode_flac(data, "shard: member")


def test_damage_never_gives_another_number_of_samples() -> None:
    whole, draw = encode_flac(noisy(0.5)), random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 20)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            assert decode_flac(bytes(data), "x").size == stream_info(bytes(data), "x").frames
        except DataError as error:
            assert str(error).startswith("x: ")
