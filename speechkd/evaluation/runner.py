"""Asks a student and stores each answer as it comes: nothing stored is asked again, and parts of the questions can be asked apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speechkd.core.files import digest
from speechkd.core.log import progress
from speechkd.evaluation.questions import Question
from speechkd.models.exported import DistilledStudent
from speechkd.models.prompt import Reading
from speechkd.teachers.answers import AnswerJournal
from speechkd.teachers.base import Answer

Audio = Callable[[Question], np.ndarray]
"""Question -> its clip, 16 kHz mono float32"""
Ask = Callable[[Sequence[Question]], list[str]]
"""Questions of one batch -> their answers"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer, stored so that it can be regraded without running the model again."""

    task: str
    split: str
    key: str
    question: str
    reference: str
    answer: str


def heard(student: Callable[[], DistilledStudent], audio: Audio, max_new_tokens: int) -> Ask:
    """Greedy answers from audio. `student` is called when the first question is asked."""
    return lambda batch: student().answer([audio(q) for q in batch], [q.instruction for q in batch], max_new_tokens)


def read(student: Callable[[], DistilledStudent], reading: Reading, max_new_tokens: int) -> Ask:
    """Greedy answers from the clip's metadata as text, without audio."""
    return lambda batch: student().read([q.sample.metadata for q in batch], [q.instruction for q in batch], reading, max_new_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Asks in fixed batches and keeps the answers in `journal`. Any number of processes may share it, each with its `partition`."""

    journal: AnswerJournal
    batch_size: int
    partition: tuple[int, int] = (0, 1)
    """this process asks batches part, part + parts, ... of each system"""

    def run(self, system: str, source: str, ask: Ask, questions: Sequence[Question]) -> list[Prediction] | None:
        """The system's answers in the order of `questions`; None while other partitions owe some.

        `source`: a digest of all that the answers depend on besides the question. Batches are cut from all questions, sorted by instruction
        and clip length to save padding, so that a resumed or partitioned evaluation asks the same batches as a whole one.
        """
        keys = [_key(source, q) for q in questions]
        stored, (part, parts) = self.journal.read(), self.partition
        order = sorted(
            range(len(questions)), key=lambda i: (questions[i].instruction, questions[i].sample.seconds, questions[i].sample.key)
        )
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        missing = [[i for i in batch if keys[i] not in stored] for batch in batches[part::parts]]
        missing = [batch for batch in missing if batch]
        for batch in progress(missing, f"eval {system}", total=len(missing)):
            answers = ask([questions[i] for i in batch])
            self.journal.commit([(keys[i], Answer(text, [], 0, "eos")) for i, text in zip(batch, answers, strict=True)])
        stored = self.journal.read()
        if any(key not in stored for key in keys):
            return None
        return [
            Prediction(q.task, q.split, q.sample.key, q.instruction, q.reference, stored[key].text)
            for q, key in zip(questions, keys, strict=True)
        ]


def _key(source: str, question: Question) -> str:
    return digest([source, question.task, question.split, question.sample.key, question.sample.digest, question.instruction])
