"""Decoding gives libsndfile's numbers, whatever holds the samples and however they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkd.data.audio import clips as audio
from speechkd.data.audio.clips import decode_bytes, decode_file
from speechkd.data.audio.raw import RawClip, Rejected, Span


@pytest.mark.parametrize("form, subtype", [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_and_bytes_are_what_libsndfile_reads(
    form: str, subtype: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "FRAMES_AT_ONCE", 1000)  # a clip is converted in several steps
    path = tmp_path / "clip"
    samples_TC = np.random.default_rng(0).uniform(-1, 1, (4321, channels)).astype(np.float32)
    samples_TC[:2] = [[-1.0], [1.0]]
    soundfile.write(path, samples_TC, 16_000, format=form, subtype=subtype)
    expected_TC = soundfile.read(path, dtype="float32", always_2d=True)[0]
    for clip in (decode_file(path), decode_bytes(path.read_bytes())):
        assert isinstance(clip, RawClip) and clip.rate == 16_000
        assert clip.samples_TC.dtype == np.float32 and np.array_equal(clip.samples_TC, expected_TC)
    if form != "OGG":
        part = decode_file(path, Span(0.1, 0.05, channels - 1))
        assert isinstance(part, RawClip) and np.array_equal(part.samples_TC[:, 0], expected_TC[1600:2400, channels - 1])


def test_a_file_that_holds_less_than_it_says_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 16_000), 16_000)
    path.write_bytes(path.read_bytes()[:8000])
    clip = decode_file(path)
    assert isinstance(clip, Rejected) and ("holds" in clip.reason or "cannot be decoded" in clip.reason)


def test_a_wav_that_was_cut_is_rejected_and_one_from_a_pipe_is_not(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.zeros(16_000), 16_000, subtype="PCM_16")
    whole = path.read_bytes()
    assert whole[36:40] == b"data"
    path.write_bytes(whole[:16_044])
    for clip in (decode_file(path), decode_bytes(whole[:16_044])):
        assert isinstance(clip, Rejected) and clip.reason == "header says 32000 bytes of audio, holds 16000"
    assert isinstance(decode_file(path, Span(0.1, 0.2)), RawClip)  # a part that is there
    for claimed in (0xFFFFFFFF, 0x7FFFFFFF - 36):
        assert isinstance(decode_bytes(whole[:40] + claimed.to_bytes(4, "little") + whole[44:]), RawClip)


def test_a_reason_is_the_same_in_every_run() -> None:
    clip = decode_bytes(b"fLaC" + bytes(100))
    assert isinstance(clip, Rejected) and clip.reason.startswith("cannot be decoded: ") and "0x" not in clip.reason
