"""The student's own LLM as a stored teacher: it reads what the student will hear (wong26a section 3.1, BLSP). No LoRA, no second model."""

from __future__ import annotations

from typing import Literal

from speechkd.teachers.hf_local import HfLocalTeacher, ReaderConfig


class OwnConfig(ReaderConfig):
    """`model` and `dtype` follow from the recipe's `student`, and a model that is another is refused."""

    backend: Literal["self"] = "self"
    model: str = ""


class OwnTeacher(HfLocalTeacher):
    """`hf_local` on the student's LLM: a recipe that changes its student changes its teacher with it."""

    Config = OwnConfig
