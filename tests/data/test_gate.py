"""Conversion that would destroy a clip is measured: over a limit of the card it is a reason in quarantine, a count in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkd.core.errors import InputError
from speechkd.data.audio.clips import normalise
from speechkd.data.audio.limits import CONVERSION, AudioLimits
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.cards import load_card
from speechkd.data.statistics import measure
from speechkd.stages.ask import listen
from tests.data.raw import shards_of

ROOT = Path(__file__).parents[2]
T = np.arange(16_000) / 16_000
TONE = 0.3 * np.sin(2 * np.pi * 220 * T)
OTHER = 0.3 * np.sin(2 * np.pi * 331 * T)
HALF = np.where(T < 0.5, 1.0, -1.0)
SPIKE = np.where(np.arange(16_000) == 8000, 50.0, TONE)
GAP = np.where((T > 0.2) & (T < 0.6), 0.0, TONE)


def stereo(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels, axis=1)


HEARD = {
    "plain": TONE,
    "loud": 3.3 * TONE,
    "a little over full scale": 3.35 * TONE,
    "two speakers": stereo(TONE, OTHER),
    "one channel of eight": stereo(TONE, *[0 * TONE] * 7),
    "half the level, other phase": stereo(TONE, -0.4 * TONE),
    "silence": 0 * TONE,
    "silence in two channels": stereo(0 * TONE, 0 * TONE),
    "a little off zero": TONE + 0.05,
    "a gap": GAP,
}
REJECTED = {
    "int range": ("max_peak", TONE * 32_768),
    "hot": ("max_clipped", TONE * 6),
    "clipped before": ("max_clipped", np.clip(TONE * 8, -1, 1)),
    "a spike": ("max_peak", SPIKE),
    "opposite phases": ("max_cancelled", stereo(TONE, -TONE)),
    "opposite phases, not of one level": ("max_cancelled", stereo(TONE, -0.9 * TONE)),
    "opposite phases, in a half": ("max_cancelled", stereo(TONE, HALF * TONE)),
    "opposite pairs": ("max_cancelled", stereo(TONE, -TONE, OTHER, -OTHER)),
    "off zero": ("max_dc", TONE + 0.3),
    "unsigned as signed": ("max_dc", 0.5 * TONE - 0.5),
}


def limits_of(clip: np.ndarray | Rejected) -> str:
    return clip.limit if isinstance(clip, Rejected) else ""


@pytest.mark.parametrize("name", HEARD)
def test_a_clip_that_conversion_leaves_whole_is_heard(name: str) -> None:
    heard = normalise(RawClip(HEARD[name].astype(np.float32), 16_000), AudioLimits())
    assert isinstance(heard, np.ndarray) and heard.size == 16_000, heard


@pytest.mark.parametrize("name", REJECTED)
def test_a_clip_that_conversion_destroys_is_not(name: str) -> None:
    limit, samples = REJECTED[name]
    clip = RawClip(samples.astype(np.float32), 16_000)
    refused = normalise(clip, AudioLimits())
    assert isinstance(refused, Rejected) and refused.limit == limit and f"audio.{limit}" in refused.reason and refused.seconds == 1.0
    assert limits_of(normalise(clip, AudioLimits.model_validate({limit: 1e9 if limit in ("max_peak", "max_dc") else 1.0}))) != limit


@pytest.mark.parametrize(
    "limits, samples, rate, limit",
    [({}, TONE, 7_999, "min_rate"), ({"min_rate": 6_000}, TONE, 6_000, ""), ({"min_rate": 16_001}, TONE, 16_000, "min_rate")]
    + [({"max_zero_seconds": most}, GAP, 16_000, limit) for most, limit in ((0.3, "max_zero_seconds"), (0.5, ""), (None, ""))],
)
def test_the_card_sets_the_limits(limits: dict[str, float], samples: np.ndarray, rate: int, limit: str) -> None:
    assert limits_of(normalise(RawClip(samples.astype(np.float32), rate), AudioLimits.model_validate(limits))) == limit


def test_limits_that_no_card_sets_change_no_digest() -> None:
    for path in [*(ROOT / "shards/cards").glob("*.yaml")]:
        assert not set(CONVERSION) & set(load_card(path).model_dump(mode="json")["audio"]), path
    assert AudioLimits(max_dc=0.2).model_dump(mode="json")["max_dc"] == 0.2
    assert AudioLimits.model_validate(AudioLimits(max_zero_seconds=1.0).model_dump(mode="json")).max_zero_seconds == 1.0


def test_they_are_reasons_in_quarantine_and_counts_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    clips = {f"h{number}": samples for number, samples in enumerate(HEARD.values())}
    clips |= {f"r{number}": samples for number, (_, samples) in enumerate(REJECTED.values())}
    for name, samples in clips.items():
        soundfile.write(tmp_path / f"clips/{name}.wav", samples, 16_000, subtype="FLOAT")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": name, "audio": f"{name}.wav"}) + "\n" for name in clips))
    shards = shards_of(tmp_path, {"kind": "jsonl", "file": "rows.jsonl", "root": "clips", "key_field": "id"})
    lines = [json.loads(line) for line in shards.files.read("quarantine.jsonl").splitlines()]
    assert {line["key"]: line["limit"] for line in lines} == {f"r{number}": limit for number, (limit, _) in enumerate(REJECTED.values())}
    assert len(shards) == len(HEARD) and shards.manifest["input"] == len(clips)
    found = measure(shards)
    counts = {name: count for name, _, count in found.conversion}
    assert counts == {name: sum(limit == name for limit, _ in REJECTED.values()) for name in CONVERSION}
    assert sum(level.dc > 0.04 for level in found.levels) == 1 and max(level.zeros for level in found.levels) == 1.0


@pytest.mark.parametrize("name", ["int range", "opposite phases", "off zero"])
def test_ask_hears_through_the_same_gate(name: str, tmp_path: Path) -> None:
    limit, samples = REJECTED[name]
    soundfile.write(tmp_path / "clip.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=limit):
        listen(tmp_path / "clip.wav")
