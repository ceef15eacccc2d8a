"""`encoder_window: true`: a batch of short clips costs its longest clip, not the encoder's window, and full-length clips give the same."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.types import Batch
from speechkd.models.architectures import encoder_from
from speechkd.models.collate import Collator, Row
from speechkd.models.encoder import Features, FrozenEncoder
from speechkd.models.encoder_families import EncoderWindow
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig
from tests.contracts.tiny import llm

SIZES = {"num_mel_bins": 8, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
WAVES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "conv_dim": [8] * 7}
FAMILIES = ("whisper", "qwen2_audio", "qwen2_5_omni_thinker", "wavlm")
SECONDS = 2
"""The mel encoders' window"""


def encoder_of(kind: str, **sizes: Any) -> Any:
    """A small encoder with random weights."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    whole = SIZES | {"max_source_positions": SECONDS * 50} | sizes
    if kind == "whisper":
        return encoder_from(AutoConfig.for_model(kind, **whole), torch.float32).eval()
    if kind == "qwen2_audio":
        return encoder_from(AutoConfig.for_model(kind, audio_config=whole), torch.float32).eval()
    if kind == "wavlm":
        positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        return encoder_from(AutoConfig.for_model(kind, **WAVES, **positions), torch.float32).eval()
    return encoder_from(AutoConfig.for_model(kind, audio_config=whole | {"output_dim": 24, "n_window": 20}), torch.float32).eval()


def features_of(kind: str, seconds: int = SECONDS, mels: int = 8) -> Features:
    from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    return Features(Wav2Vec2FeatureExtractor() if kind == "wavlm" else WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds))


def clips(*samples: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(0.0, 0.3, size).astype(np.float32) for size in samples]


def heard(kind: str, window: EncoderWindow, given: list[np.ndarray]) -> tuple[Batch, tuple[Tensor, ...], Tensor]:
    """Batch, encoder states, and projected audio at the positions that sequences read."""
    block = {"encoder": kind, "llm": "tiny", "projector": {"kind": "mlp_stack", "stack": 5, "hidden": 12}, "encoder_window": window}
    encoder = encoder_of(kind)
    torch.manual_seed(1)
    student = Student(encoder, llm(), StudentConfig.model_validate(block))
    batch = Collator(features_of(kind), student.encoder.hearing, student.projector.positions)([Row([1], [2], [3], c) for c in given])
    states = student.encoder(batch.features_BMT, batch.clips.frames_C)
    return batch, states, student.hear(states, batch).audio_CQD.flatten(0, 1)[batch.audio_from_A]


@pytest.mark.parametrize("kind", FAMILIES)
def test_clips_that_fill_the_window_are_heard_the_same(kind: str) -> None:
    given = clips(32_000, 31_000) if kind != "wavlm" else clips(9_600, 9_500)
    (full, full_states, full_audio), (cut, cut_states, cut_audio) = (heard(kind, window, given) for window in ("full", "true"))
    assert torch.equal(cut.features_BMT, full.features_BMT)
    for ours, expected in zip(cut_states, full_states, strict=True):
        assert torch.equal(ours, expected[:, : ours.shape[1]])
    torch.testing.assert_close(cut_audio, full_audio, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_short_clips_cost_the_longest_of_them(kind: str) -> None:
    given = clips(6_400, 12_800)  # whole stacks of frames, so that no projected position looks behind a clip
    (full, full_states, full_audio), (cut, cut_states, cut_audio) = (heard(kind, window, given) for window in ("full", "true"))
    frames = int(cut.clips.frames_C.max())
    assert {s.shape[1] for s in cut_states} == {frames} and full_states[0].shape[1] > frames == cut.clips.frames_C.tolist()[1]
    assert cut.clips.mask_CQ.shape[1] == -(-frames // 5) < full.clips.mask_CQ.shape[1]
    T = cut.features_BMT.shape[-1]
    torch.testing.assert_close(cut.features_BMT, full.features_BMT[..., :T], atol=1e-5, rtol=1e-5)
    if kind == "whisper":  # its blocks attend to the silence, of which there is less
        torch.testing.assert_close(cut_states[0], full_states[0][:, :frames], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(cut_states[-1], full_states[-1][:, :frames], atol=1e-3)
    else:
        torch.testing.assert_close(cut_audio, full_audio, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["whisper", "qwen2_audio"])
def test_the_states_are_those_of_transformers(kind: str) -> None:
    encoder, features = encoder_of(kind), features_of(kind)
    for param in encoder.parameters():
        param.data += 0.1 * torch.randn(param.shape)
    mels_CMT = features(clips(32_000), 32_000)
    with torch.no_grad():
        theirs = encoder(mels_CMT, output_hidden_states=True)
    ours = FrozenEncoder(encoder)(mels_CMT, torch.tensor([SECONDS * (50 if kind == "whisper" else 25)]))
    assert len(ours) == len(theirs.hidden_states) == 3
    torch.testing.assert_close(ours[-1], theirs.last_hidden_state)
    if kind == "whisper":
        for mine, state in zip(ours, theirs.hidden_states, strict=True):
            torch.testing.assert_close(mine, state)


@pytest.mark.parametrize("kind", FAMILIES)
def test_one_frame_below_the_window(kind: str) -> None:
    hearing = FrozenEncoder(encoder_of(kind), "true").hearing
    batch, states, audio = heard(kind, "true", clips((min(hearing.window, 100) - 1) * hearing.hop))
    assert states[0].shape[1] == hearing.heard(batch.clips.frames_C.tolist()) and audio.isfinite().all()


def test_whisper_hears_a_clip_alone_whatever_its_neighbours_are() -> None:
    """States of transformers' own modules for the lone clip's log-mels, with nothing behind them; zeros behind shorter clips."""
    encoder, given = encoder_of("whisper"), clips(6_400, 12_601)
    for param in encoder.parameters():
        param.data += 0.1 * torch.randn(param.shape)
    hears = FrozenEncoder(encoder, "clip")
    batch = Collator(features_of("whisper"), hears.hearing, lambda frames: frames)([Row([1], [2], [3], clip) for clip in given])
    assert batch.features_BMT.shape[2] == 80 and batch.clips.frames_C.tolist() == [20, 40]
    ours = hears(batch.features_BMT, batch.clips.frames_C)
    assert all(not s[0, 20:].any() for s in ours)
    for index, (clip, frames) in enumerate(zip(given, (20, 40), strict=True)):
        extractor = features_of("whisper").extractor
        mels = extractor(clip, sampling_rate=16_000, padding="longest", pad_to_multiple_of=320, return_tensors="pt")["input_features"]
        with torch.no_grad():
            x = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(mels)))).transpose(1, 2)
            x = x + encoder.embed_positions.weight[: x.shape[1]]
            for block in encoder.layers:
                x = block(x, None)
            x = encoder.layer_norm(x)
        assert x.shape[1] == frames
        torch.testing.assert_close(ours[-1][index, :frames], x[0], atol=1e-5, rtol=1e-5)


def test_only_whisper_can_hear_a_clip_alone() -> None:
    with pytest.raises(InputError, match="`encoder_window: clip` is for Whisper's encoder, is set for `qwen2_audio_encoder`"):
        FrozenEncoder(encoder_of("qwen2_audio"), "clip")


def test_a_batch_without_audio_is_one_frame() -> None:
    for kind in FAMILIES:
        encoder = FrozenEncoder(encoder_of(kind), "true")
        batch = Collator(features_of(kind), encoder.hearing, lambda frames: frames)([])
        assert encoder(batch.features_BMT, batch.clips.frames_C)[0].shape[:2] == (1, 1)


def test_a_step_on_short_clips_takes_a_fifth_of_the_time() -> None:
    """A Whisper of 4 layers x 384 with its 1,500 positions; clips of 1 to 3 s; forward, backward, features apart."""
    sizes = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "max_source_positions": 1500}
    encoder, given = encoder_of("whisper", **sizes | {"num_mel_bins": 80}), clips(48_000, 32_000, 16_000)
    seconds: dict[str, float] = {}
    steps = []
    windows: tuple[EncoderWindow, ...] = ("full", "true")
    for window in windows:
        projector = {"kind": "mlp_stack", "stack": 15, "hidden": 256}
        block = {"encoder": "whisper", "llm": "tiny", "projector": projector, "encoder_window": window}
        student = Student(encoder, llm(), StudentConfig.model_validate(block))
        make = Collator(features_of("whisper", 30, 80), student.encoder.hearing, student.projector.positions)
        steps.append((window, student, make([Row([1], [2], [3, 4], clip) for clip in given])))
    for _ in range(2):
        for window, student, batch in steps:
            begin = time.perf_counter()
            student(batch, batch.response_T - 1).sum().backward()
            seconds[window] = min(seconds.get(window, 1e9), time.perf_counter() - begin)
    assert seconds["true"] <= seconds["full"] / 5, seconds
    print(f"full {seconds['full']:.3f} s, true {seconds['true']:.3f} s: {seconds['full'] / seconds['true']:.1f} x")
