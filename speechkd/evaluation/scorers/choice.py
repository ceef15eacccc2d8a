"""Scores a multiple-choice answer: it must equal the reference, ignoring case and a final full stop."""

from __future__ import annotations

from collections.abc import Sequence

from speechkd.core.text import folded
from speechkd.evaluation.scorers import Grade


def _plain(text: str) -> str:
    return " ".join(folded(text).strip().rstrip(".!。").split())


def grade(answer: str, reference: str, choices: Sequence[str]) -> Grade:
    """Unparsable: an answer that is none of `choices` (no choices given: an empty answer)."""
    plain = _plain(answer)
    parsed = plain in {_plain(choice) for choice in choices} if choices else bool(plain)
    return Grade(int(parsed and plain == _plain(reference)), 1, parsed)
