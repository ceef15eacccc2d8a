"""Scores a multiple-choice answer: it must equal the reference, ignoring case and a final full stop."""

from __future__ import annotations

from collections.abc import Sequence

from speechkd.core.text import folded
from speechkd.evaluation.scorers import Grade, unparsed


def _plain(text: str) -> str:
    return " ".join(folded(text).strip().rstrip(".!。").split())


def units(answer: str, choices: Sequence[str]) -> list[str] | None:
    """The choice that the answer is; None for an answer that is none of `choices` (no choices given: an empty answer)."""
    plain = _plain(answer)
    parsed = plain in {_plain(choice) for choice in choices} if choices else bool(plain)
    return [plain] if parsed else None


def grade(answer: str, reference: str, choices: Sequence[str]) -> Grade:
    """One unit, right or wrong; unparsable: see `units`."""
    given = units(answer, choices)
    if given is None:
        return unparsed(1)
    hit = int(given == [_plain(reference)])
    return Grade(hit, 1, True, substitutions=1 - hit)
