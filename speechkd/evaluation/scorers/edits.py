"""Counts substitutions, deletions and insertions between an answer and its reference (jiwer's alignment)."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer

from speechkd.evaluation.scorers import Grade


def align(given: Sequence[str], wanted: Sequence[str]) -> Grade:
    """The grade of an answer's units against the reference's. Units must hold no spaces."""
    if not wanted:  # jiwer refuses an empty reference
        return Grade(0, 0, True, insertions=len(given))
    found = jiwer.process_words(" ".join(wanted), " ".join(given))
    return Grade(found.hits, len(wanted), True, found.substitutions, found.deletions, found.insertions)
