"""The shipped stand-ins as a student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkd.models.exported import DistilledStudent, load_features, load_tokenizer
from speechkd.models.lora import LoraConfig
from speechkd.models.prompt import Prompt
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def distilled() -> DistilledStudent:
    """A student with an untrained projector."""
    return build()


def build(lora: LoraConfig | None = None) -> DistilledStudent:
    """One of its own, for tests that change it."""
    from transformers import AutoModelForCausalLM, WhisperModel

    torch.manual_seed(0)
    encoder = WhisperModel.from_pretrained(ROOT / "standins/encoder", dtype=torch.float32).encoder
    llm = AutoModelForCausalLM.from_pretrained(ROOT / "standins/llm", dtype=torch.float32)
    projector = {"kind": "mlp_stack", "stack": 5, "hidden": 32}
    config = StudentConfig(encoder="standins/encoder", llm="standins/llm", projector=projector, lora=lora)
    template = (ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8").rstrip("\n")
    prompt = Prompt(template, load_tokenizer(str(ROOT / "standins/llm")))
    return DistilledStudent(Student(encoder, llm, config), prompt, load_features(str(ROOT / "standins/encoder")))
