"""Other people's parsers, each named after whose it is: grading the same answers by all of them shows how far the parser moves a score.

None of them is this project's score. A parser says None for a task that it is not made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from speechkd.core.config import Config
from speechkd.core.table import Table
from speechkd.evaluation.scorers import Grade


class ParsersConfig(Config):
    """Files that parsers read; they hold data only, and nothing in them is executed."""

    voicebench: str | None = None
    """VoiceBench's `src/evaluator/mcq.py`: the list of templates is read from it as text; unset: its parser does not run"""
    whisper_spelling: str | None = None
    """`normalizer.json` of a Whisper checkpoint (British to American spelling); unset: English keeps its spelling"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a parser knows of one question."""

    key: str
    kind: str
    reference: str
    choices: Sequence[str]
    language: str
    """as the metadata names it; empty: unknown"""


class Parser(Protocol):
    """Grades one answer by someone's rules; None for a question that they are not made for."""

    def __call__(self, answer: str, asked: Asked, config: ParsersConfig) -> Grade | None: ...


PARSERS: Table[Parser] = Table(
    "parser",
    {
        "mmau": "speechkd.evaluation.scorers.mmau:grade",
        "pl_distill": "speechkd.evaluation.scorers.pl_distill:grade",
        "voicebench_random": "speechkd.evaluation.scorers.voicebench:grade",
        "whisper": "speechkd.evaluation.scorers.whisper:grade",
    },
)
