"""Facts about the language models of the student and its live teachers, from configuration files and tokenizers alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechkd.models.architectures import meta_causal_lm
from speechkd.models.exported import MANIFEST, TOKENIZER, llm_of, load_tokenizer, read_manifest
from speechkd.models.model_folder import HUB_ID, config_home, text_config
from speechkd.models.student_config import StudentConfig
from speechkd.teachers.live_config import LiveConfig, SpeechConfig, TextLlmConfig


def student_depth(student: StudentConfig) -> int:
    """Number of layers of the student's language model."""
    layers: int = text_config(student.llm, student.config_root).num_hidden_layers
    return layers


def student_vocabulary_width(student: StudentConfig) -> int:
    """Width of the student's output, padding included."""
    width: int = text_config(student.llm, student.config_root).vocab_size
    return width


def teacher_llm(live: LiveConfig, student: StudentConfig) -> str:
    """The language model of a live teacher: its own, or the student's for `self` and `snapshot`."""
    if isinstance(live, SpeechConfig) and not is_speech_llm(live.model, student.config_root):
        return llm_of(Path(live.model), read_manifest(Path(live.model)))
    return live.model if isinstance(live, (TextLlmConfig, SpeechConfig)) else student.llm


def teacher_tokenizer(live: LiveConfig, student: StudentConfig) -> Any:
    """The tokenizer of a live teacher's language model; an export brings its own."""
    if isinstance(live, SpeechConfig) and not is_speech_llm(live.model, student.config_root):
        return load_tokenizer(str(Path(live.model) / TOKENIZER))
    return load_tokenizer(teacher_llm(live, student))


def teacher_depth(live: LiveConfig, student: StudentConfig) -> int:
    """Number of layers of a live teacher's language model."""
    layers: int = text_config(teacher_llm(live, student), student.config_root).num_hidden_layers
    return layers


def teacher_vocabulary_width(live: LiveConfig, student: StudentConfig) -> int:
    """Width of a live teacher's output, padding included."""
    width: int = text_config(teacher_llm(live, student), student.config_root).vocab_size
    return width


def is_speech_llm(model: str, config_root: str | None) -> bool:
    """Whether the model of a speech teacher is a whole speech LLM, not an export."""
    if (Path(model) / MANIFEST).is_file():
        return False
    home = Path(config_home(model, config_root))
    on_the_hub = not Path(model).exists() and HUB_ID.fullmatch(model) is not None
    return (home / "config.json").is_file() or on_the_hub


def live_parameters(live: Mapping[str, LiveConfig], student: StudentConfig) -> dict[str, int]:
    """Parameter counts of the language models that live teachers add to the student's, by teacher."""
    counts = {}
    for name, config in live.items():
        if isinstance(config, (TextLlmConfig, SpeechConfig)):
            llm = meta_causal_lm(config_home(teacher_llm(config, student), student.config_root))
            counts[name] = sum(p.numel() for p in llm.parameters())
    return counts
