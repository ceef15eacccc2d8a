"""Backend `label`: the dataset's labels are the answers, for instruction fine-tuning (L_IFT in wong26a, PMLR 312:61-77, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer, Request, TeacherConfig


class LabelConfig(TeacherConfig):
    """No settings of its own: the answers come from the card's label fields."""

    backend: Literal["label"] = "label"


class LabelTeacher:
    """Answers task questions with the clip's label; does not answer open instructions."""

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
            prompt_tokens = len(prompt.before) + len(prompt.after)
            out.append(Answer(label, self.prompt.answer(label), prompt_tokens, stop="eos"))
        return out
