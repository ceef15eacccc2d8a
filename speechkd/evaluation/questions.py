"""The evaluation block of a recipe, and the questions that it selects: a card's tasks on clips of the chosen splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.seeds import derive
from speechkd.data.cards import Task
from speechkd.data.shards.index import Sample
from speechkd.models.prompt import Reading
from speechkd.teachers.prompts import SPOKEN, task_applies


class EvaluationConfig(Config):
    """What to evaluate. The first of `splits` is the main one (new utterances under training conditions); controls run only on it."""

    splits: dict[str, str] = Field(min_length=1)
    """label in the summary -> split name, e.g. {student: test_known, unseen: test_unseen}"""
    tasks: list[str] | None = None
    """names of the card's tasks; unset: all"""
    limit: int = Field(500, gt=0)
    """clips per task and split, drawn by a hash of the key"""
    max_new_tokens: int = Field(32, gt=0)
    batch_size: int = Field(64, gt=0)
    samples: int = Field(12, ge=0)
    """clips shown with players in the report"""
    controls: bool = True
    """also evaluate with another clip's audio, and with an untrained projector"""
    reads: Reading | None = None
    """also let the trained student read this in place of the audio, to compare its text ability; unset: skip"""

    def identity(self) -> dict[str, Any]:
        """All settings that the answers depend on, as JSON. Keys that came later are left out at their default: old digests stay valid."""
        unset = {name for name in ("controls", "reads") if getattr(self, name) == type(self).model_fields[name].get_default()}
        return self.model_dump(mode="json", exclude=unset)


@dataclass(frozen=True, slots=True)
class Question:
    """One graded question about one clip."""

    task: str
    split: str
    sample: Sample
    instruction: str
    reference: str

    @property
    def turn(self) -> str:
        """The turn name under which a teacher column stores this question's answer."""
        return f"task-{self.task}" if self.instruction else SPOKEN


def questions(name: str, task: Task, split: str, samples: Sequence[Sample], limit: int) -> list[Question]:
    """The first `limit` clips of a split (in hash order) to which the task applies."""
    fitting = sorted((s for s in samples if s.seconds > 0 and task_applies(task, s.metadata)), key=lambda s: derive(0, "evaluate", s.key))
    return [Question(name, split, s, task.question(s.metadata), str(s.metadata[task.field])) for s in fitting[:limit]]
