"""Folders for other engines: their own classes load the student that training made, and a student that does not fit is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.core.files import read_json
from speechkd.engine.foreign import FACTS, write_foreign
from speechkd.models.exported import load_student
from speechkd.models.formats import FORMATS, check_fits
from speechkd.models.student import meta_student
from speechkd.models.student_config import StudentConfig
from tests.engine.foreign import QUESTION, ROOT, STANDINS, exported, probe_of

LORA = {"r": 2, "targets": ["q_proj", "down_proj", "linear"]}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Qwen2-Audio's encoder and a Qwen2 with tied vocabularies, small and random, far from their start."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM, WhisperFeatureExtractor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts")
    text: dict[str, Any] = {
        "vocab_size": 1545,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text |= {"num_key_value_heads": 2}
    sizes = {"num_mel_bins": 8, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
    whole = Qwen2AudioConfig(audio_config=sizes | {"max_source_positions": 100}, text_config=text | {"model_type": "qwen2"})
    made: dict[str, Any] = {"encoder": Qwen2AudioForConditionalGeneration(whole)}
    made["llm"] = Qwen2ForCausalLM(Qwen2Config(**text, tie_word_embeddings=True))
    for name, model in made.items():
        for param in model.parameters():
            param.data += 0.1 * torch.randn(param.shape)
        model.save_pretrained(folder / name)
    WhisperFeatureExtractor(feature_size=8, chunk_length=2).save_pretrained(folder / "encoder")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "standins/llm" / name, folder / "llm" / name)
    return {name: str(folder / name) for name in made}


def config_of(models: dict[str, str], **keys: Any) -> StudentConfig:
    plain = {"projector": {"kind": "linear", "pool": 1}, "encoder_states": "last", "dtype": "float32"}
    return StudentConfig.model_validate(models | plain | keys)


@pytest.fixture(scope="module")
def qwen2_audio(parts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder, and the student that it holds."""
    folder = tmp_path_factory.mktemp("qwen2_audio")
    own = exported(folder / "own", config_of(parts, lora=LORA))
    difference = write_foreign(folder / "out", own, "qwen2_audio", "card")
    assert difference is not None and difference <= 1e-4
    return folder / "out", load_student(own)


@pytest.mark.parametrize("samples", [12_800, 20_011])
def test_transformers_loads_qwen2_audios_folder_as_the_same_student(samples: int, qwen2_audio: tuple[Path, Any]) -> None:
    folder, student = qwen2_audio
    probe, ours_NV = probe_of(student, samples)
    theirs_NV = FORMATS.get("qwen2_audio")().logits(folder, "float32", probe)
    assert theirs_NV is not None
    theirs_NV = theirs_NV[:, : ours_NV.shape[1]]
    assert float((theirs_NV - ours_NV).abs().max()) <= 1e-4 < 0.1 < float(ours_NV.abs().max())


def test_a_clip_that_is_not_padded_to_40_ms_loses_its_last_position_in_qwen2_audio(qwen2_audio: tuple[Path, Any]) -> None:
    from transformers import AutoProcessor

    folder, student = qwen2_audio
    processor: Any = AutoProcessor.from_pretrained(folder)
    hearing = student.student.encoder.hearing
    for samples, lost in ((12_800, 0), (20_011, 1), (20_480, 0), (20_481, 1)):
        text, clip = "<|AUDIO|>", np.zeros(samples, np.float32)
        ids = processor(text=text, audio=[clip], sampling_rate=16_000, return_tensors="pt")["input_ids"]
        assert ids.shape[1] == hearing.frames(samples) - lost


def test_qwen2_audios_folder_has_the_published_names_and_answers_as_the_student(qwen2_audio: tuple[Path, Any]) -> None:
    from safetensors import safe_open
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    folder, student = qwen2_audio
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert {"audio_tower.conv1.weight", "multi_modal_projector.linear.bias", "language_model.model.norm.weight"} <= names
    assert "language_model.lm_head.weight" in names and not [name for name in names if "lora" in name]
    assert read_json(folder / FACTS)["step"] == 7 and (folder / "README.md").read_text(encoding="utf-8") == "card"
    model: Any = Qwen2AudioForConditionalGeneration.from_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    clip = np.random.default_rng(5).normal(0, 0.1, 16_000).astype(np.float32)
    asked = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    inputs: Any = processor(text=text, audio=[clip], sampling_rate=16_000, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(tokens, skip_special_tokens=True).strip() == student.answer([clip], [QUESTION], 8)[0]


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "layers summed": ({"encoder_states": "weighted_sum"}, "sums encoder layers"),
    "another projector": ({"projector": {"kind": "mlp_stack"}}, "its projector is a MlpStack"),
    "pooled twice": ({"projector": {"kind": "linear", "pool": 2}}, "pools 2 positions"),
    "another LLM": ({"llm": STANDINS["llm"]}, "its language model is a `llama`"),
    "another encoder": ({"encoder": STANDINS["encoder"]}, "its encoder is `whisper`"),
    "LoRA on audio": ({"lora": {**LORA, "scope": "audio"}}, "acts at audio positions only"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_student_that_is_no_qwen2_audio_is_told_which_part_differs(name: str, parts: dict[str, str]) -> None:
    changes, why = MISFITS[name]
    student = meta_student(config_of(parts, **changes))
    with pytest.raises(InputError, match=f"^this student is no `qwen2_audio`: .*{why}.*; formats that fit it: speechkd") as caught:
        check_fits("qwen2_audio", student)
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path, parts: dict[str, str]) -> None:
    own = exported(tmp_path / "own", config_of(parts))
    with pytest.raises(InputError, match="exists and is no export of another engine's format"):
        write_foreign(own, own, "qwen2_audio", "")
    with pytest.raises(InputError, match="unknown export format `qwen2audio`.*did you mean `qwen2_audio`"):
        write_foreign(tmp_path / "out", own, "qwen2audio", "")
