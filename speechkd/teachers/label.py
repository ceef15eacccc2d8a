"""The `label` teacher: ground-truth answers as a column, for instruction fine-tuning (wong26a section 3.2, L_IFT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer, Request, TeacherConfig


class LabelConfig(TeacherConfig):
    """Nothing to set: the answers are the card's label fields."""

    backend: Literal["label"] = "label"


class LabelTeacher:
    """Answers task turns with the clip's label; has nothing to say to open instructions."""

    Config = LabelConfig
    SIGNALS = frozenset({"response"})

    def __init__(self, config: LabelConfig, prompt: Prompt) -> None:
        self.prompt = prompt

    def accepts(self, request: Request) -> bool:
        """Only turns whose label is known."""
        return request.label is not None

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Labels as response tokens."""
        out = []
        for request in requests:
            asked = self.prompt.student(request.question)
            label = request.label or ""
            out.append(Answer(label, self.prompt.answer(label), len(asked.before) + len(asked.after), "eos"))
        return out
