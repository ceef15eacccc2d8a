"""Controls: what a student scores that cannot hear this clip (other clips' audio, silence, noise, no audio), and by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from speechkd.core.seeds import derive
from speechkd.core.text import folded
from speechkd.data.cards import Task
from speechkd.evaluation.grading import summarise
from speechkd.evaluation.questions import Question
from speechkd.evaluation.scorers import SCORERS

Other = dict[tuple[str, str, str], Question]
"""(task, split, key) of a question -> the one whose audio it gets"""


def by_task(questions: Sequence[Question]) -> dict[tuple[str, str], list[Question]]:
    """(task, split) -> its questions, in order."""
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        groups.setdefault((question.task, question.split), []).append(question)
    return groups


def asked_alike(questions: Sequence[Question]) -> bool:
    """Whether all clips are asked the same question, so that all pairings of answers with clips are known (`permutation`)."""
    return len({question.instruction for question in questions}) == 1


def derangements(questions: Sequence[Question], count: int) -> list[Other]:
    """Up to `count` pairings in which no question keeps its own audio, for the tasks whose clips are asked different questions.

    Each is a rotation of the list, which is in the order of a hash; a task of n questions has n - 1 of them.
    """
    groups = {name: group for name, group in by_task(questions).items() if not asked_alike(group) and len(group) > 1}
    out: list[Other] = [{} for _ in range(count)]
    for (task, split), group in groups.items():
        fits = min(count, len(group) - 1)
        shifts = [1 + number * (len(group) - 1) // fits for number in range(fits)]
        for other, shift in zip(out, shifts, strict=False):
            for index, question in enumerate(group):
                other[task, split, question.sample.key] = group[(index + shift) % len(group)]
    return [other for other in out if other]


def silence(audio: Callable[[Question], np.ndarray]) -> Callable[[Question], np.ndarray]:
    """Zeros of each clip's length."""
    return lambda question: np.zeros_like(audio(question))


def noise(audio: Callable[[Question], np.ndarray]) -> Callable[[Question], np.ndarray]:
    """White noise of each clip's length and level (RMS), seeded by its key."""

    def of(question: Question) -> np.ndarray:
        clip_T = audio(question)
        white_T = np.random.default_rng(derive(0, "noise", question.sample.key)).standard_normal(len(clip_T))
        level = np.sqrt(np.mean(np.square(clip_T, dtype=np.float64)) / max(np.mean(np.square(white_T)), 1e-12)) if len(clip_T) else 0.0
        return np.asarray(white_T * level, clip_T.dtype)

    return of


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
