"""PL-Distill's parser (its released `evaluate.py`), for emotions: whatever it does not know is class 0, Neutral.

That holds for references, too: "Calm" is Neutral there, so its RAVDESS scores are of seven classes, and an unparsable answer to a neutral
clip is right. Kept for comparing with the paper; the strict score counts neither.
"""

from __future__ import annotations

from speechkd.evaluation.scorers import Grade
from speechkd.evaluation.scorers.parsers import Asked, ParsersConfig

PREFIXES = ("Neutral", "Happy", "Sad", "Ang", "Sur", "Dis", "Fear")
"""An answer that begins so, in just this case, is of the class at this place"""
_IN_THREE_CASES = {
    0: ("neutral",),
    1: ("happy", "joy"),
    2: ("sad", "sadness"),
    3: ("angry", "anger"),
    4: ("surprise", "surprised"),
    5: ("disgust",),
    6: ("fear", "fearful"),
}
_IN_LOWER_CASE = {"disgusted": 5}
_EXACT = _IN_LOWER_CASE | {
    form: number for number, words in _IN_THREE_CASES.items() for word in words for form in (word, word.capitalize(), word.upper())
}


def emotion(text: str) -> int | None:
    """Class of an answer or reference; None where the rules know none and the released code says 0."""
    plain = text.strip()
    if plain in _EXACT:
        return _EXACT[plain]
    return next((number for number, prefix in enumerate(PREFIXES) if plain.startswith(prefix)), None)


def grade(answer: str, asked: Asked, config: ParsersConfig) -> Grade | None:
    """For choices among at least two of these emotions; unparsable answers are counted, and graded as Neutral."""
    if asked.kind != "choice" or len({emotion(choice) for choice in asked.choices} - {None}) < 2:
        return None
    given = emotion(answer)
    hit = int((given or 0) == (emotion(asked.reference) or 0))
    return Grade(hit, 1, given is not None, substitutions=1 - hit)
