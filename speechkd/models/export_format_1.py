"""Reads export manifests of the old format `speechkd-student/1`, which had the keys of `student` at the top level.

Exports in this format exist, so they stay readable; new ones are written in the format of `models.exported.ExportManifest` only.
"""

from __future__ import annotations

from typing import Any, Literal

from speechkd.core.config import Config, build
from speechkd.models.lora import LoraConfig
from speechkd.models.student_config import ProjectorBlock

FORMAT_1 = "speechkd-student/1"


class _FrozenModel(Config):
    """A frozen model that the export needs."""

    name: str
    fingerprint: str


class _Manifest1(Config):
    """`export.json` in format 1."""

    format: str
    encoder: _FrozenModel
    llm: _FrozenModel
    projector: ProjectorBlock
    normalise_layers: bool
    mix: Literal["all", "last"] = "all"
    """`all` is today's `encoder_states: weighted_sum`"""
    dtype: Literal["float32", "bfloat16"]
    lora: LoraConfig | None = None
    step: int
    recipe_digest: str
    checkpoint: str
    merged: bool = False
    files: dict[str, str]
    probe_difference: float | None = None
    metadata_fields: list[str] = []
    """only in the first exports, and always empty"""


def from_format_1(data: dict[str, Any], where: str) -> dict[str, Any]:
    """A manifest of format 1 by the keys of `ExportManifest`, without `format`. Raises InputError in terms of the old keys."""
    old = build(_Manifest1, data, where)
    student = {
        "encoder": old.encoder.name,
        "llm": old.llm.name,
        "lora": old.lora,
        "projector": old.projector,
        "encoder_states": "weighted_sum" if old.mix == "all" else "last",
        "normalise_layers": old.normalise_layers,
        "dtype": old.dtype,
    }
    return {
        "student": student,
        "fingerprints": {"encoder": old.encoder.fingerprint, "llm": old.llm.fingerprint},
        **old.model_dump(include={"step", "recipe_digest", "checkpoint", "merged", "files", "probe_difference"}),
    }
