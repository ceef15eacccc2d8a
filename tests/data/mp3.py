"""The places of an MP3's frames, found by the decoder's sync words alone."""

from __future__ import annotations

from itertools import pairwise


def mp3_frames(data: bytes) -> list[int]:
    """Places of the frames of an MP3 that libsndfile has written: all have the first frame's kind."""
    rates = (
        (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320) if data[1] & 8 else (0, *range(8, 65, 8), *range(80, 161, 16))
    )
    hertz = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}[data[1] >> 3 & 3][data[2] >> 2 & 3]
    out = [0]
    while out[-1] < len(data):
        assert data[out[-1]] == 0xFF
        out.append(out[-1] + (144 if data[1] & 8 else 72) * rates[data[out[-1] + 2] >> 4] * 1000 // hertz + (data[out[-1] + 2] >> 1 & 1))
    assert out[-1] == len(data) and all(first < second for first, second in pairwise(out))
    return out[:-1]
