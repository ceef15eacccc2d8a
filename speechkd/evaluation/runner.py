"""Generates and grades a student's answers, and computes the controls beside them (shuffled audio, chance)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from speechkd.core.log import progress
from speechkd.core.text import folded
from speechkd.data.cards import Task
from speechkd.evaluation.questions import Question
from speechkd.evaluation.scorers import SCORERS, Grade
from speechkd.models.exported import DistilledStudent
from speechkd.models.prompt import Reading

Audio = Callable[[Question], np.ndarray]
"""Question -> its clip, 16 kHz mono float32"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer, stored so that it can be regraded without running the model again."""

    task: str
    split: str
    key: str
    question: str
    reference: str
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """Share of correct units (choices, or words), number of answers `n`, and how many of them did not parse."""

    value: float
    n: int
    unparsable: int


def answer_from_audio(
    student: DistilledStudent, questions: Sequence[Question], audio: Audio, max_new_tokens: int, batch_size: int, label: str
) -> list[Prediction]:
    """The student's greedy answers from audio, in the order of `questions`."""

    def answer(batch: Sequence[Question]) -> list[str]:
        return student.answer([audio(q) for q in batch], [q.instruction for q in batch], max_new_tokens)

    return _in_batches(answer, questions, batch_size, label)


def answer_from_metadata(
    student: DistilledStudent, questions: Sequence[Question], reading: Reading, max_new_tokens: int, batch_size: int, label: str
) -> list[Prediction]:
    """The student's greedy answers from the clip's metadata as text, without audio, in the order of `questions`."""

    def answer(batch: Sequence[Question]) -> list[str]:
        return student.read([q.sample.metadata for q in batch], [q.instruction for q in batch], reading, max_new_tokens)

    return _in_batches(answer, questions, batch_size, label)


def _in_batches(
    answer: Callable[[Sequence[Question]], list[str]], questions: Sequence[Question], batch_size: int, label: str
) -> list[Prediction]:
    """Answer in batches, sorted by instruction and clip length to save padding."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].instruction, questions[i].sample.seconds, questions[i].sample.key))
    answers: dict[int, str] = {}
    starts = range(0, len(order), batch_size)
    for start in progress(starts, label, total=len(starts)):
        batch = order[start : start + batch_size]
        answers.update(zip(batch, answer([questions[i] for i in batch]), strict=True))
    return [Prediction(q.task, q.split, q.sample.key, q.instruction, q.reference, answers[i]) for i, q in enumerate(questions)]


def shuffled(questions: Sequence[Question]) -> dict[tuple[str, str], Question]:
    """(task, key) of each question -> another question of its task and split, half a list further, whose audio it gets instead."""
    out: dict[tuple[str, str], Question] = {}
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        groups.setdefault((question.task, question.split), []).append(question)
    for (task, _), group in groups.items():
        shift = max(1, len(group) // 2)
        for index, question in enumerate(group):
            out[task, question.sample.key] = group[(index + shift) % len(group)]
    return out


def grade(predictions: Iterable[Prediction], tasks: dict[str, Task]) -> list[Grade]:
    """Grade predictions with the strict scorer of each task's kind."""
    return [SCORERS.get(tasks[p.task].kind)(p.answer, p.reference, tasks[p.task].choices) for p in predictions]


def summarise(grades: Sequence[Grade]) -> Score | None:
    """Accuracy over all units; None if nothing was graded."""
    total = sum(g.total for g in grades)
    return Score(sum(g.hits for g in grades) / total, len(grades), sum(not g.parsed for g in grades)) if total else None


def chance(questions: Sequence[Question], task: Task) -> float | None:
    """Score without audio: for a choice the most frequent answer, for words another clip's answer (rotated by half)."""
    if not questions:
        return None
    references = [q.reference for q in questions]
    if task.kind == "choice":
        return Counter(map(folded, references)).most_common(1)[0][1] / len(references)
    shift = max(1, len(references) // 2)
    guesses = references[shift:] + references[:shift]
    score = summarise([SCORERS.get(task.kind)(g, r, task.choices) for g, r in zip(guesses, references, strict=True)])
    return score.value if score else None
