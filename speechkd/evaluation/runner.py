"""Asking a student its questions, and what stands beside it: shuffled audio, an untrained projector, chance, the teacher, reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from speechkd.core.log import progress
from speechkd.data.cards import Task
from speechkd.evaluation.scorers import SCORERS, Grade
from speechkd.evaluation.task import Question
from speechkd.models.exported import DistilledStudent
from speechkd.models.prompt import Reading

Audio = Callable[[Question], np.ndarray]
"""Where a question's clip comes from: 16 kHz mono float32"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer, stored so that it can be graded again without asking again."""

    task: str
    split: str
    key: str
    question: str
    reference: str
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """Hits over units, and how many answers did not parse."""

    value: float
    n: int
    unparsable: int


def ask(
    student: DistilledStudent, asked: Sequence[Question], audio: Audio, max_new_tokens: int, batch_size: int, label: str
) -> list[Prediction]:
    """Greedy answers from audio alone, in the order of `asked`."""

    def answer(batch: Sequence[Question]) -> list[str]:
        return student.answer([audio(q) for q in batch], [q.instruction for q in batch], max_new_tokens)

    return _in_batches(answer, asked, batch_size, label)


def ask_reading(
    student: DistilledStudent, asked: Sequence[Question], reading: Reading, max_new_tokens: int, batch_size: int, label: str
) -> list[Prediction]:
    """Greedy answers where the student reads the clip's metadata and hears nothing, in the order of `asked`."""

    def answer(batch: Sequence[Question]) -> list[str]:
        return student.read([q.sample.metadata for q in batch], [q.instruction for q in batch], reading, max_new_tokens)

    return _in_batches(answer, asked, batch_size, label)


def _in_batches(
    answer: Callable[[Sequence[Question]], list[str]], asked: Sequence[Question], batch_size: int, label: str
) -> list[Prediction]:
    """Batches are sorted by instruction and clip length, which hardly pads."""
    order = sorted(range(len(asked)), key=lambda i: (asked[i].instruction, asked[i].sample.seconds, asked[i].sample.key))
    answers: dict[int, str] = {}
    starts = range(0, len(order), batch_size)
    for start in progress(starts, label, total=len(starts)):
        batch = order[start : start + batch_size]
        answers.update(zip(batch, answer([asked[i] for i in batch]), strict=True))
    return [Prediction(q.task, q.split, q.sample.key, q.instruction, q.reference, answers[i]) for i, q in enumerate(asked)]


def shuffled(asked: Sequence[Question]) -> dict[tuple[str, str], Question]:
    """Each question's (task, key) -> another question of the same task and split whose audio it gets: a rotation by half."""
    out: dict[tuple[str, str], Question] = {}
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in asked:
        groups.setdefault((question.task, question.split), []).append(question)
    for (task, _), group in groups.items():
        shift = max(1, len(group) // 2)
        for index, question in enumerate(group):
            out[task, question.sample.key] = group[(index + shift) % len(group)]
    return out


def grade(predictions: Iterable[Prediction], tasks: dict[str, Task]) -> list[Grade]:
    """Grade stored predictions by each task's strict scorer."""
    return [SCORERS.get(tasks[p.task].kind)(p.answer, p.reference, tasks[p.task].choices) for p in predictions]


def summarise(grades: Sequence[Grade]) -> Score | None:
    """Hits over units; None where nothing was graded."""
    total = sum(g.total for g in grades)
    return Score(sum(g.hits for g in grades) / total, len(grades), sum(not g.parsed for g in grades)) if total else None


def chance(asked: Sequence[Question], task: Task) -> float | None:
    """What needs no audio: the most frequent answer for a choice; another clip's answer (rotation by half) for words."""
    if not asked:
        return None
    references = [q.reference for q in asked]
    if task.kind == "choice":
        return Counter(references).most_common(1)[0][1] / len(references)
    shift = max(1, len(references) // 2)
    guesses = references[shift:] + references[:shift]
    score = summarise([SCORERS.get(task.kind)(g, r, task.choices) for g, r in zip(guesses, references, strict=True)])
    return score.value if score else None
