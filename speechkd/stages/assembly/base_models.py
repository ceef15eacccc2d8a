"""Fingerprints of the frozen models that a run builds on; a checkpoint is refused on any others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechkd.core.errors import InputError
from speechkd.core.files import sha256_file
from speechkd.models.exported import MANIFEST
from speechkd.models.model_folder import fingerprint
from speechkd.models.student_config import StudentConfig
from speechkd.stages.assembly.model_facts import is_speech_llm
from speechkd.teachers.live_config import LiveConfig, SpeechConfig, TextLlmConfig


def frozen_base(student: StudentConfig, live: Mapping[str, LiveConfig]) -> dict[str, str]:
    """Fingerprints of the frozen models: encoder, LLM, live teachers, and the export that the student starts from."""
    return {"encoder": fingerprint(student.encoder), "llm": fingerprint(student.llm), **_other_bases(student, live)}


def same_base(trainer: dict[str, Any], checkpoint: Path, student: StudentConfig, live: Mapping[str, LiveConfig]) -> None:
    """Raises InputError if a checkpoint was trained on other frozen models than the ones that now bear these names.

    `trainer`: what the checkpoint says of its training.
    """
    for part, found in frozen_base(student, live).items():
        if trainer.get("base", {}).get(part) != found:
            raise InputError(
                f"`{checkpoint}` was trained on another {part} than `{_name(part, student, live)}` has now: use another `name`"
            )


def _name(part: str, student: StudentConfig, live: Mapping[str, LiveConfig]) -> str:
    """The model that the recipe names for a part of the base."""
    teacher = live.get(part.removeprefix("live teacher "))
    if isinstance(teacher, (TextLlmConfig, SpeechConfig)):
        return teacher.model
    return str({"encoder": student.encoder, "llm": student.llm, "init_from": student.init_from}[part])


def _other_bases(student: StudentConfig, live: Mapping[str, LiveConfig]) -> dict[str, str]:
    """Digests of the models of live teachers, and of the export that the student starts from."""
    found = {}
    for name, config in live.items():
        if isinstance(config, TextLlmConfig):
            found[f"live teacher {name}"] = fingerprint(config.model)
        elif isinstance(config, SpeechConfig):
            whole = is_speech_llm(config.model, student.config_root)
            found[f"live teacher {name}"] = fingerprint(config.model) if whole else sha256_file(Path(config.model) / MANIFEST)
    if student.init_from:
        found["init_from"] = sha256_file(Path(student.init_from) / MANIFEST)
    return found
