"""Every animal of the zoo is read exactly, or goes to quarantine with a reason that is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechkd.data.audio.clips import RATE, decode_bytes, decode_file, normalise
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.audio.raw import RawClip, Rejected, Span
from tests.faults.audio_zoo import Animal, zoo

ZOO = list(zoo())


def test_the_zoo_is_large() -> None:
    assert len({animal.name for animal in ZOO}) == len(ZOO) > 150


@pytest.mark.parametrize("animal", ZOO, ids=lambda animal: animal.name)
def test_an_animal_is_read_exactly_or_refused_for_a_true_reason(animal: Animal, tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(animal.data)
    clip = decode_file(path)
    same = decode_bytes(animal.data)
    heard = clip if isinstance(clip, Rejected) else normalise(clip, AudioLimits())
    if animal.reason:
        assert isinstance(heard, Rejected) and heard.reason.startswith(animal.reason), heard
        assert isinstance(same, RawClip) or same == clip
        return
    assert isinstance(heard, np.ndarray), heard
    assert isinstance(clip, RawClip) and isinstance(same, RawClip) and np.array_equal(clip.samples_TC, same.samples_TC)
    part = decode_file(path, Span(0.25, 0.5))
    assert isinstance(part, RawClip) and len(part.samples_TC) == round(0.5 * clip.rate)
    first = round(0.25 * clip.rate)
    assert np.abs(part.samples_TC - clip.samples_TC[first : first + len(part.samples_TC)]).max() < 2e-3  # Opus is not exact after a jump
    assert heard.size / RATE == pytest.approx(animal.seconds, abs=0.001)
    assert float(np.sqrt(np.mean(np.square(heard, dtype=np.float64)))) == pytest.approx(animal.rms, rel=0.01)
