"""Backend `self`: the student's own LLM is the teacher and reads a text in place of the audio (wong26a section 3.1, BLSP); without LoRA."""

from __future__ import annotations

from typing import Literal

from speechkd.teachers.hf_local import HfLocalTeacher, ReaderConfig


class StudentLlmConfig(ReaderConfig):
    """`model` and `dtype` default to the recipe's `student`; the recipe refuses any other model."""

    backend: Literal["self"] = "self"
    model: str = ""


class StudentLlmTeacher(HfLocalTeacher):
    """`hf_local` with the student's LLM, so a recipe that changes its student changes this teacher too."""

    Config = StudentLlmConfig
