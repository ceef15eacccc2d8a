"""A clip that is shorter, longer, louder, quieter, narrower or wider than those of the training is said to be."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkd.core.errors import InputError
from speechkd.core.files import write_json
from speechkd.data.audio.clips import RATE, decode_bytes, normalise
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.audio.raw import Rejected
from speechkd.data.shards.index import open_shards
from speechkd.data.training_range import RANGE, TrainingRange, bandwidth, measure_range, read_range, unlike, write_range

TRAINED = TrainingRange(seconds=(0.5, 3.0), level_db=(-30.0, -15.0), bandwidth_hz=(7000.0, 8000.0))


def noise(seconds: float, level_db: float) -> np.ndarray:
    samples_T = np.random.default_rng(0).normal(0, 10 ** (level_db / 20), int(seconds * RATE))
    return np.clip(samples_T, -1, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (noise(1.0, -20.0), None),
        (noise(3.1, -12.0), None),  # a little beyond is nothing to speak of
        (noise(6.0, -20.0), "lasts 6.0 s (0.5 to 3.0 s)"),
        (noise(0.1, -20.0), "lasts 0.1 s"),
        (noise(1.0, -50.0), "has a level of -50 dBFS (-30 to -15)"),
        (np.zeros(RATE, np.float32), "is silent"),
    ],
)
def test_a_clip_outside_the_range_is_one_line(clip: np.ndarray, words: str | None) -> None:
    said = unlike(TRAINED, clip)
    assert said is None if words is None else (said is not None and words in said and "\n" not in said)


def test_a_telephone_clip_is_narrow_and_a_whole_one_is_not() -> None:
    samples_T = noise(1.0, -20.0)
    telephone = BytesIO()
    soundfile.write(telephone, samples_T[: RATE // 2], 8_000, format="WAV")
    decoded = decode_bytes(telephone.getvalue())
    assert not isinstance(decoded, Rejected)
    heard = normalise(decoded, AudioLimits())
    assert isinstance(heard, np.ndarray)
    assert bandwidth(heard) <= 5_000 < 7_900 <= bandwidth(samples_T)
    assert "kHz (7.0 to 8.0)" in str(unlike(TRAINED, heard))
    assert unlike(TRAINED, samples_T) is None


def test_the_range_is_the_indexs_lengths_and_a_samples_levels(tones_root: Path, tmp_path: Path) -> None:
    shards = open_shards(tones_root)
    found = measure_range([(shards, list(shards.splits()))])
    assert found is not None
    seconds = shards.read_index(["seconds", "audio_bytes"])
    heard = seconds["seconds"].to_numpy()[seconds["audio_bytes"].to_numpy() > 0]
    assert found.seconds == (heard.min(), heard.max())
    assert found.level_db[0] <= found.level_db[1] < 0 and 0 < found.bandwidth_hz[0] <= found.bandwidth_hz[1] <= 8_000
    write_range(tmp_path, found)
    assert read_range(tmp_path) == found
    assert measure_range([(shards, [])]) is None


def test_an_export_without_a_range_says_nothing_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    assert read_range(tmp_path) is None and unlike(None, np.zeros(9, np.float32)) is None
    write_json(tmp_path / RANGE, {"seconds": "long"})
    with pytest.raises(InputError, match=RANGE):
        read_range(tmp_path)
