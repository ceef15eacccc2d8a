"""Grades stored answers: strictly for the score, and by every other parser that is made for the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from speechkd.core.types import Metadata
from speechkd.data.cards import Task
from speechkd.evaluation.runner import Prediction
from speechkd.evaluation.scorers import SCORERS, Grade
from speechkd.evaluation.scorers.parsers import PARSERS, Asked, ParsersConfig

GRADING_VERSION = 2
"""Raised where the same answers get another score: summaries of another version are graded again"""
STRICT = "strict"


@dataclass(frozen=True, slots=True)
class Score:
    """Points over all units (for words 1 - WER, below 0 where answers say far too much), number of answers `n`, how many did not parse."""

    value: float
    n: int
    unparsable: int


def grade(predictions: Iterable[Prediction], tasks: Mapping[str, Task]) -> list[Grade]:
    """Grade predictions with the strict scorer of each task's kind."""
    return [SCORERS.get(tasks[p.task].kind)(p.answer, p.reference, tasks[p.task].choices) for p in predictions]


def summarise(grades: Sequence[Grade]) -> Score | None:
    """The score of all answers together; None where there is nothing to get right."""
    total = sum(g.total for g in grades)
    return Score(sum(g.points for g in grades) / total, len(grades), sum(not g.parsed for g in grades)) if total else None


def by_every_parser(
    predictions: Sequence[Prediction], task: Task, metadata: Mapping[str, Metadata], config: ParsersConfig
) -> dict[str, Score]:
    """The same answers to one task by the strict scorer and by every parser that is made for it, by name."""
    grades: dict[str, list[Grade]] = {STRICT: grade(predictions, dict.fromkeys((p.task for p in predictions), task))}
    for p in predictions:
        asked = Asked(p.key, task.kind, p.reference, task.choices, str(metadata[p.key].get("language", "")))
        for name in PARSERS:
            found = PARSERS.get(name)(p.answer, asked, config)
            if found is not None:
                grades.setdefault(name, []).append(found)
    scores = {name: summarise(given) for name, given in grades.items() if len(given) == len(predictions)}
    return {name: score for name, score in scores.items() if score is not None}
