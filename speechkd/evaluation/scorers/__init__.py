"""Scorers: strict ones, one file per task kind, and beside them the parsers that other people's figures were made with.

Strict: an answer that does not parse counts as 0 and is never guessed, and saying more than the reference costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from speechkd.core.table import Table


class Grade(NamedTuple):
    """Of `total` units (one for a choice, each reference word or character otherwise), `hits` are right; an unparsable answer has none.

    `total` = `hits` + `substitutions` + `deletions`; `insertions` are what the answer says beyond the reference.
    """

    hits: int
    total: int
    parsed: bool
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def points(self) -> int:
        """What the answer earns of `total`: total - (substitutions + deletions + insertions), below 0 where it says far too much."""
        return self.hits - self.insertions

    @property
    def right(self) -> bool:
        """Whether the answer equals the reference, in the units that count."""
        return self.parsed and self.points == self.total


def unparsed(total: int) -> Grade:
    """The grade of an answer that does not parse: 0, whatever it says."""
    return Grade(0, total, False, deletions=total)


class Scorer(Protocol):
    """Grades one answer."""

    def __call__(self, answer: str, reference: str, choices: Sequence[str]) -> Grade: ...


class Units(Protocol):
    """The units of a text that a kind compares, or None for an answer that does not parse. A choice is one unit."""

    def __call__(self, answer: str, choices: Sequence[str]) -> list[str] | None: ...


SCORERS: Table[Scorer] = Table(
    "task kind",
    {
        "characters": "speechkd.evaluation.scorers.characters:grade",
        "choice": "speechkd.evaluation.scorers.choice:grade",
        "words": "speechkd.evaluation.scorers.words:grade",
    },
)
UNITS: Table[Units] = Table(
    "task kind",
    {
        "characters": "speechkd.evaluation.scorers.characters:units",
        "choice": "speechkd.evaluation.scorers.choice:units",
        "words": "speechkd.evaluation.scorers.words:units",
    },
)
