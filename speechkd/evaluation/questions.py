"""The evaluation block of a recipe, and the questions that it selects: a card's tasks on clips of the chosen splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from speechkd.core.config import Config
from speechkd.core.seeds import derive
from speechkd.core.table import part_of
from speechkd.data.cards import Task
from speechkd.data.shards.index import Sample
from speechkd.evaluation.averages import AverageConfig
from speechkd.evaluation.scorers.parsers import ParsersConfig
from speechkd.models.prompt import Reading
from speechkd.teachers import TEACHERS
from speechkd.teachers.base import TeacherConfig
from speechkd.teachers.prompts import SPOKEN, task_applies

MoreControl = Literal["silence", "noise", "text_only"]
GRADING = {"parsers", "slices", "average", "judge"}
"""Keys that change how stored answers are graded, and no answer"""


class JudgeConfig(Config):
    """Who judges, and which tasks."""

    teacher: Annotated[SerializeAsAny[TeacherConfig], part_of(TEACHERS, "backend")]
    tasks: list[str] = Field(min_length=1)
    """names of the card's tasks with free answers"""


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
    """also evaluate with other clips' audio, and with an untrained projector"""
    derangements: int = Field(5, ge=1)
    """times that every clip gets another one's audio, in tasks whose clips are asked different questions (where all are asked the same, all
    pairings are known without asking)"""
    more_controls: list[MoreControl] = []
    """also evaluate with silence, with noise of each clip's level, without any audio"""
    reads: Reading | None = None
    """also let the trained student read this in place of the audio, to compare its text ability; unset: skip"""

    parsers: ParsersConfig = ParsersConfig()
    """what other people's parsers need, for the scores beside the strict one"""
    judge: JudgeConfig | None = None
    """an LLM that grades free answers, 0 to 5; unset: none"""
    average: AverageConfig | None = None
    """one number over tasks by a benchmark's rule; unset: none"""
    slices: list[str] = ["language", "gender", "age", "accent", "nationality"]
    """metadata by whose values the student's score is also given, with counts"""

    def identity(self) -> dict[str, Any]:
        """All settings that the answers depend on, as JSON. Keys that came later are left out at their default: old digests stay valid."""
        later = ("controls", "reads", "derangements", "more_controls")
        unset = {name for name in later if getattr(self, name) == type(self).model_fields[name].get_default()}
        return self.model_dump(mode="json", exclude=unset | GRADING)


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
