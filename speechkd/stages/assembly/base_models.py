"""The frozen models that a run stands on, by fingerprint: a checkpoint is worth nothing on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechkd.core.errors import InputError
from speechkd.core.files import sha256_file
from speechkd.models.exported import MANIFEST
from speechkd.models.model_folder import fingerprint
from speechkd.recipe import Recipe
from speechkd.stages.assembly.model_facts import is_speech_llm
from speechkd.teachers.live_config import SpeechConfig, TextLlmConfig


def frozen_base(recipe: Recipe) -> dict[str, str]:
    """Fingerprints of encoder, LLM and whatever else a run stands on."""
    return {"encoder": fingerprint(recipe.student.encoder), "llm": fingerprint(recipe.student.llm), **_other_bases(recipe)}


def same_base(trainer: dict[str, Any], recipe: Recipe, checkpoint: Path) -> None:
    """Raises InputError if a checkpoint was trained on other frozen models than the recipe's names stand for now."""
    for part, found in frozen_base(recipe).items():
        if trainer.get("base", {}).get(part) != found:
            raise InputError(f"`{checkpoint}` was trained on another {part} than `{_name(recipe, part)}` has now: use another `name`")


def _name(recipe: Recipe, part: str) -> str:
    """What the recipe calls a part of its base."""
    live = recipe.live.get(part.removeprefix("live teacher "))
    return str(getattr(live, "model", None) or getattr(recipe.student, part))


def _other_bases(recipe: Recipe) -> dict[str, str]:
    """Digests of what else a run stands on: models of live teachers, and the export that it starts from."""
    found = {}
    for name, config in recipe.live.items():
        if isinstance(config, TextLlmConfig):
            found[f"live teacher {name}"] = fingerprint(config.model)
        elif isinstance(config, SpeechConfig):
            whole = is_speech_llm(recipe, config)
            found[f"live teacher {name}"] = fingerprint(config.model) if whole else sha256_file(Path(config.model) / MANIFEST)
    if recipe.student.init_from:
        found["init_from"] = sha256_file(Path(recipe.student.init_from) / MANIFEST)
    return found
