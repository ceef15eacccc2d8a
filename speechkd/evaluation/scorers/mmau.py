"""MMAU's parser (its `string_match`): the answer holds every word of the reference, and no word that only a wrong choice has.

Lenient where strict is not: "I am sure it is a cat" is right. It searches the answer, so words outside all choices cost nothing.
"""

from __future__ import annotations

import re

from speechkd.evaluation.scorers import Grade, unparsed
from speechkd.evaluation.scorers.parsers import Asked, ParsersConfig


def _tokens(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\b\w+\b", text.lower()))


def grade(answer: str, asked: Asked, config: ParsersConfig) -> Grade | None:
    """For choices only; unparsable: an answer without a word."""
    if asked.kind != "choice" or not asked.choices:
        return None
    given, wanted = _tokens(answer), _tokens(asked.reference)
    if not given:
        return unparsed(1)
    others = [_tokens(choice) for choice in asked.choices]
    wrong = frozenset[str]().union(*(other - wanted for other in others if other != wanted))
    hit = int(wanted <= given and not given & wrong)
    return Grade(hit, 1, True, substitutions=1 - hit)
