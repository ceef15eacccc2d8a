"""Scores character accuracy, for scripts without spaces (Chinese, Japanese, Thai): reference characters that the answer gets right.

Spaces and punctuation do not count: transcripts of one corpus have them, those of another do not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import jiwer

from speechkd.core.text import folded
from speechkd.evaluation.scorers import Grade

SPACELESS = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How Unicode names the characters of scripts that put no spaces between words"""


def spaceless(text: str) -> bool:
    """Whether most letters of a text are of a script without spaces between words."""
    letters = [sign for sign in text if sign.isalpha()]
    return 2 * sum(unicodedata.name(sign, "").startswith(SPACELESS) for sign in letters) > len(letters)


def _characters(text: str) -> list[str]:
    """Letters, marks, digits and symbols, one by one."""
    return [sign for sign in folded(text) if unicodedata.category(sign)[0] in "LMNS"]


def grade(answer: str, reference: str, choices: Sequence[str]) -> Grade:
    """Unparsable: an answer without a character, or one that is none of `choices` (if any are given)."""
    given, wanted = _characters(answer), _characters(reference)
    if not given or (choices and given not in [_characters(choice) for choice in choices]):
        return Grade(0, len(wanted), False)
    hits = jiwer.process_words(" ".join(wanted), " ".join(given)).hits if wanted else 0
    return Grade(hits, len(wanted), True)
