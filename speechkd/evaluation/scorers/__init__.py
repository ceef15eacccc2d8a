"""Strict scorers, one file per task kind: an answer that does not parse counts as wrong and is never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from speechkd.core.table import Table


class Grade(NamedTuple):
    """`hits` of `total` units (one for a choice, each reference word or character otherwise); an unparsable answer has no hits."""

    hits: int
    total: int
    parsed: bool


class Scorer(Protocol):
    """Grades one answer."""

    def __call__(self, answer: str, reference: str, choices: Sequence[str]) -> Grade: ...


SCORERS: Table[Scorer] = Table(
    "task kind",
    {
        "characters": "speechkd.evaluation.scorers.characters:grade",
        "choice": "speechkd.evaluation.scorers.choice:grade",
        "words": "speechkd.evaluation.scorers.words:grade",
    },
)
