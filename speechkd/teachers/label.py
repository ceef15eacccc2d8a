"""Backend `label`: the dataset's own labels as answers, for instruction fine-tuning (wong26a section 3.2, L_IFT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer, Request, TeacherConfig


class LabelConfig(TeacherConfig):
    """No settings of its own: the answers come from the card's label fields."""

    backend: Literal["label"] = "label"


class LabelTeacher:
    """Answers task questions with the clip's label, and no open instructions."""

    Config = LabelConfig
    SIGNALS = frozenset({"response"})

    def __init__(self, config: LabelConfig, prompt: Prompt) -> None:
        self.prompt = prompt

    def accepts(self, request: Request) -> bool:
        """Only requests with a label."""
        return request.label is not None

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The labels, tokenized."""
        out = []
        for request in requests:
            prompt = self.prompt.student(request.question)
            label = request.label or ""
            out.append(Answer(label, self.prompt.answer(label), len(prompt.before) + len(prompt.after), "eos"))
        return out
