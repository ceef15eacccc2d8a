"""The student's score by groups of clips (language, gender, accent ...), with counts: a mean can hide whom it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from speechkd.core.types import Metadata
from speechkd.evaluation.grading import summarise
from speechkd.evaluation.runner import Prediction
from speechkd.evaluation.scorers import Grade
from speechkd.teachers.gates import refuses

MOST_VALUES = 30
"""A field with more values than this is no group"""
SPEAKERS = ("speaker", "voice")
"""Metadata that says who speaks, the first that a clip has"""


def refusals(predictions: Sequence[Prediction]) -> int:
    """How many answers refuse ("there is no audio"), by the string tests of the teacher's gate."""
    return sum(refuses(p.answer) for p in predictions)


def by_group(
    predictions: Sequence[Prediction], grades: Sequence[Grade], metadata: Mapping[str, Metadata], fields: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Field -> value -> score, unparsable answers and n, for the fields that have more than one value; clips without it are left out."""
    out = {}
    for field in fields:
        groups: dict[str, list[Grade]] = {}
        for p, found in zip(predictions, grades, strict=True):
            if field in metadata[p.key]:
                groups.setdefault(str(metadata[p.key][field]), []).append(found)
        scores = {value: summarise(group) for value, group in sorted(groups.items())}
        if 1 < len(scores) <= MOST_VALUES:
            out[field] = {
                value: {"value": score.value, "n": score.n, "unparsable": score.unparsable}
                for value, score in scores.items()
                if score is not None
            }
    return out


def speakers(predictions: Sequence[Prediction], metadata: Mapping[str, Metadata]) -> list[str] | None:
    """Who speaks in each clip; None where a clip does not say."""
    found = [next((str(metadata[p.key][name]) for name in SPEAKERS if name in metadata[p.key]), None) for p in predictions]
    known = [name for name in found if name is not None]
    return known if len(known) == len(found) else None
