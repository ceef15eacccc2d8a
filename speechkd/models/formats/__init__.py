"""Folders in which other engines keep speech LLMs: which students fit, and how one is written. One file and one line in `FORMATS` each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.table import Table
from speechkd.models.exported import DistilledStudent
from speechkd.models.student import Student

OWN = "speechkd"
"""The name of speechkd's own format, which every student fits"""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question about one clip, and tokens to be scored."""

    samples_T: np.ndarray
    """16 kHz mono float32"""
    question: str
    response: list[int]


class ExportFormat(Protocol):
    """A format of another engine. A student fits it exactly or not at all."""

    CLIP_SAMPLES: ClassVar[int]
    """clips that are a multiple of so many samples long have the same positions there as here"""
    USAGE: ClassVar[str]
    """Markdown for the folder's README: who loads it and how"""

    def misfit(self, student: Student) -> str | None:
        """The part of the student (also on the meta device) that the format has no place for, and what it has instead; None: it fits."""

    def write(self, student: DistilledStudent, folder: Path) -> None:
        """Write a student that fits, its LoRA merged. Raises InputError where its prompt or tokenizer cannot be written."""

    def logits(self, folder: Path, dtype: str, probe: Probe) -> Tensor | None:
        """Logits [N, V] that predict the response's N tokens, of the folder as its own classes load it, in the student's precision.

        None: no class here loads it.
        """


FORMATS: Table[type[ExportFormat]] = Table(
    "export format",
    {
        "qwen2_audio": "speechkd.models.formats.qwen2_audio:Qwen2AudioFormat",
        "ultravox": "speechkd.models.formats.ultravox:UltravoxFormat",
    },
)


def check_fits(name: str, student: Student) -> None:
    """Raises InputError where a student does not fit a format: which part differs, and which formats it fits."""
    why = FORMATS.get(name, "--format")().misfit(student)
    if why is not None:
        fitting = [OWN, *(other for other in FORMATS if FORMATS.get(other)().misfit(student) is None)]
        raise InputError(f"this student is no `{name}`: {why}; formats that fit it: {', '.join(fitting)} (--format)")


def audio_lora_only(student: Student) -> str | None:
    """Why LoRA cannot be merged: it acts at audio positions alone."""
    if student.lora is not None and student.lora.scope == "audio" and any(".lora_" in name for name, _ in student.llm.named_parameters()):
        return "its LoRA acts at audio positions only (student.lora.scope: audio), which no merged weight does"
    return None
