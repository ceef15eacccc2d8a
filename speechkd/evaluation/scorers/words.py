"""Scores word accuracy: reference words that the answer gets right (jiwer's alignment) over all reference words."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer

from speechkd.core.text import folded
from speechkd.evaluation.scorers import Grade


def grade(answer: str, reference: str, choices: Sequence[str]) -> Grade:
    """Unparsable: an empty answer, or one with a word outside `choices` (if any are given)."""
    words, wanted = folded(answer).split(), folded(reference).split()
    allowed = {folded(choice) for choice in choices}
    if not words or (allowed and not set(words) <= allowed):
        return Grade(0, len(wanted), False)
    return Grade(jiwer.process_words(" ".join(wanted), " ".join(words)).hits, len(wanted), True)
