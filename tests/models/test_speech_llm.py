"""A speech LLM's folder gives its encoder and its language model to a student: the very functions of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechkd.models.encoder import FrozenEncoder
from speechkd.models.pretrained import load_causal_lm, load_whisper_encoder, meta_causal_lm, meta_encoder
from speechkd.models.projectors import PROJECTORS
from speechkd.models.student import Student

V, FRAMES = 97, 76


@pytest.fixture(scope="module")
def qwen2_audio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A Qwen2-Audio with random weights, saved by transformers, and the model itself."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    torch.manual_seed(0)
    audio = {"num_mel_bins": 8, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
    text = {"model_type": "qwen2", "vocab_size": V, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    config = Qwen2AudioConfig(audio_config=audio | {"max_source_positions": FRAMES}, text_config=text | heads, audio_token_index=V - 1)
    model = Qwen2AudioForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("qwen2_audio")
    model.save_pretrained(folder)
    return folder, model


def test_the_encoder_is_the_whole_models(qwen2_audio: tuple[Path, Any]) -> None:
    folder, model = qwen2_audio
    tower = next(part for name, part in model.named_modules() if name.endswith("audio_tower"))
    features = torch.randn(2, 8, 2 * FRAMES, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o)) for layer in tower.layers]
    with torch.no_grad():
        tower(features)
    for hook in hooks:
        hook.remove()
    ours = FrozenEncoder(load_whisper_encoder(str(folder), torch.float32))
    states = ours(features)
    assert len(states) == ours.layers == 3 and states[1].shape == (2, FRAMES, 16)
    torch.testing.assert_close(states[1], seen[0])
    torch.testing.assert_close(states[2], tower.layer_norm(seen[1]).detach())


def test_the_language_model_is_the_whole_models(qwen2_audio: tuple[Path, Any]) -> None:
    folder, model = qwen2_audio
    ids = torch.randint(1, V - 1, (2, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(load_causal_lm(str(folder), torch.float32)(ids).logits, model(input_ids=ids).logits)  # type: ignore


def test_both_make_a_student_and_a_dry_run(qwen2_audio: tuple[Path, Any]) -> None:
    folder = str(qwen2_audio[0])
    projector = PROJECTORS.get("linear").Config.model_validate({"pool": 2})
    Student(load_whisper_encoder(folder, torch.float32), load_causal_lm(folder, torch.float32), projector)
    with torch.device("meta"):
        planned = Student(meta_encoder(folder), meta_causal_lm(folder), projector)
    assert {name for name, _ in planned.trainable()} == {"mix.logits_L", "projector.linear.weight", "projector.linear.bias"}
