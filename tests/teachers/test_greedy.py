"""Greedy means greedy: nothing that a model's `generation_config.json` says changes an answer of teacher or student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkd.models.exported import load_tokenizer
from speechkd.models.greedy import generate_greedily
from speechkd.models.pretrained import load_causal_lm
from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Clip, Request
from speechkd.teachers.hf_audio import HfAudioConfig, HfAudioTeacher
from speechkd.teachers.hf_local import HfLocalConfig, HfLocalTeacher
from tests.teachers.speech_models import LLM, TEMPLATE, write_speech_llm

FILES: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.9},
    "ngram": {"no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": list(range(20, 900))},
    "begin": {"begin_suppress_tokens": list(range(20, 900))},
    "forced": {"forced_bos_token_id": 30, "forced_eos_token_id": 31},
    "bad words": {"bad_words_ids": [[n] for n in range(20, 900)]},
    "bias": {"sequence_bias": [[[40], 50.0]]},
    "sampled": {"do_sample": True, "temperature": 9.0, "top_k": 0},
    "beams": {"num_beams": 3, "length_penalty": 5.0},
    "short": {"max_length": 3, "max_new_tokens": 1},
    "long": {"min_length": 90, "min_new_tokens": 9},
    "time": {"max_time": 0.000001},
    "stops": {"eos_token_id": list(range(20, 900)), "stop_strings": ["e"]},
    "guided": {"guidance_scale": 3.0},
    "lookup": {"prompt_lookup_num_tokens": 3, "num_return_sequences": 1, "renormalize_logits": True},
    "returned": {"return_dict_in_generate": True, "output_scores": True, "num_return_sequences": 3, "do_sample": True},
}
QUESTION = "Describe the speaker and write down the words."


def asked(audio: bool) -> list[Request]:
    clip = Clip(16_000, lambda: np.linspace(-0.5, 0.5, 16_000, dtype=np.float32))
    metadata = [{"language": "english", "transcript": " ".join(["five", "five", "two"] * n)} for n in (1, 2)]
    return [Request(f"c{n}", "open-0", QUESTION, known, clip=clip if audio else None) for n, known in enumerate(metadata)]


def with_file(model: Path, said: dict[str, Any]) -> None:
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def test_a_reading_teacher_answers_as_without_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = Prompt(TEMPLATE, load_tokenizer(LLM))

    def answers(model: str) -> list[list[int]]:
        config = HfLocalConfig(model=model, fields=["language", "transcript"], max_new_tokens=8, dtype="float32")
        return [answer.tokens for answer in HfLocalTeacher(config, prompt).answer(asked(audio=False))]

    plain = answers(LLM)
    assert "generation_config" not in capsys.readouterr().err
    for name, said in FILES.items():
        model = tmp_path / name
        shutil.copytree(LLM, model)
        with_file(model, said)
        assert answers(str(model)) == plain, name
        told = capsys.readouterr().err
        changed = [key for key in said if not key.startswith(("eos_token_id", "output_", "return_dict"))]
        assert all(f"{key}: " in told for key in changed), f"{name}: {told}"


def test_a_hearing_teacher_answers_as_without_the_file(tmp_path: Path) -> None:
    model = write_speech_llm(tmp_path / "model")
    prompt = Prompt(TEMPLATE, load_tokenizer(LLM))

    def answers() -> list[list[int]]:
        config = HfAudioConfig(model=str(model), max_new_tokens=6, dtype="float32")
        return [answer.tokens for answer in HfAudioTeacher(config, prompt).answer(asked(audio=True))]

    plain, kept = answers(), (model / "generation_config.json").read_text()
    for name in ("ngram", "suppressed", "beams"):
        (model / "generation_config.json").write_text(kept)
        with_file(model, FILES[name])
        assert answers() == plain, name


def test_the_models_own_configuration_stays_for_exports() -> None:
    lm: Any = load_causal_lm(LLM, torch.float32)
    lm.generation_config.repetition_penalty = 1.5
    inputs = {"input_ids": torch.tensor([[40, 50]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    made = generate_greedily(lm, inputs, 3, 1538)
    assert made.shape[1] <= 5 and lm.generation_config.repetition_penalty == 1.5
