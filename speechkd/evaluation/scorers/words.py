"""Scores words: 1 - word error rate, so that a word too much costs as much as a wrong one (jiwer's alignment)."""

from __future__ import annotations

from collections.abc import Sequence

from speechkd.core.text import folded
from speechkd.evaluation.scorers import Grade, unparsed
from speechkd.evaluation.scorers.edits import align


def units(answer: str, choices: Sequence[str]) -> list[str] | None:
    """The answer's words; None for an empty answer, or one with a word outside `choices` (if any are given)."""
    words = folded(answer).split()
    allowed = {folded(choice) for choice in choices}
    return None if not words or (allowed and not set(words) <= allowed) else words


def grade(answer: str, reference: str, choices: Sequence[str]) -> Grade:
    """Counts of one answer; unparsable: see `units`."""
    given, wanted = units(answer, choices), folded(reference).split()
    return unparsed(len(wanted)) if given is None else align(given, wanted)
