"""Scores characters, for scripts without spaces (Chinese, Japanese, Thai): 1 - character error rate.

Spaces and punctuation do not count: transcripts of one corpus have them, those of another do not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from speechkd.core.text import folded
from speechkd.evaluation.scorers import Grade, unparsed
from speechkd.evaluation.scorers.edits import align

SPACELESS = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How Unicode names the characters of scripts that put no spaces between words"""


def spaceless(text: str) -> bool:
    """Whether most letters of a text are of a script without spaces between words."""
    letters = [sign for sign in text if sign.isalpha()]
    return 2 * sum(unicodedata.name(sign, "").startswith(SPACELESS) for sign in letters) > len(letters)


def _characters(text: str) -> list[str]:
    """Letters, marks, digits and symbols, one by one."""
    return [sign for sign in folded(text) if unicodedata.category(sign)[0] in "LMNS"]


def units(answer: str, choices: Sequence[str]) -> list[str] | None:
    """The answer's characters; None for an answer without one, or one that is none of `choices` (if any are given)."""
    given = _characters(answer)
    return None if not given or (choices and given not in [_characters(choice) for choice in choices]) else given


def grade(answer: str, reference: str, choices: Sequence[str]) -> Grade:
    """Counts of one answer; unparsable: see `units`."""
    given, wanted = units(answer, choices), _characters(reference)
    return unparsed(len(wanted)) if given is None else align(given, wanted)
