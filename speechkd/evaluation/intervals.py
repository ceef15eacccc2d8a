"""How sure a score is: bootstrap intervals over clips or speakers, and a paired test of two runs on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechkd.core.seeds import derive
from speechkd.evaluation.scorers import Grade

RESAMPLES, LEVEL = 2_000, 0.95
SWAPS = 10_000
_AT_ONCE = 1 << 22
"""numbers of one block of resampling weights"""


@dataclass(frozen=True, slots=True)
class Difference:
    """Run A less run B on the questions that both answered."""

    value: float
    low: float
    high: float
    p: float
    """two-sided: share of random swaps of the runs' answers that differ at least so much"""
    n: int
    groups: int
    """what was resampled and swapped as one: speakers, or clips"""


def interval(grades: Sequence[Grade], groups: Sequence[str]) -> tuple[float, float] | None:
    """Percentile bootstrap interval of sum(points) / sum(total), whole groups drawn; None for one group, or nothing to get right."""
    sums_G2 = _sums(grades, groups)
    if len(sums_G2) < 2 or not sums_G2[:, 1].sum():
        return None
    drawn_R2 = _resampled(sums_G2)
    scores = drawn_R2[:, 0] / np.maximum(drawn_R2[:, 1], 1)
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired(grades_a: Sequence[Grade], grades_b: Sequence[Grade], groups: Sequence[str]) -> Difference | None:
    """Compare two runs' grades of the same questions, in the same order; None where nothing can be got right.

    The interval is a bootstrap over groups, the p-value an approximate randomization test (Noreen 1989): under the null, a group's two sets
    of answers may be swapped.
    """
    sums_G2 = _sums([Grade(a.points - b.points, a.total, True) for a, b in zip(grades_a, grades_b, strict=True)], groups)
    total = sums_G2[:, 1].sum() if len(sums_G2) else 0
    if not total:
        return None
    drawn_R2 = _resampled(sums_G2)
    low, high = np.quantile(drawn_R2[:, 0] / np.maximum(drawn_R2[:, 1], 1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    true = sums_G2[:, 0].sum()
    generator, reached, done = np.random.default_rng(derive(0, "swaps")), 0, 0
    while done < SWAPS:
        count = min(SWAPS - done, max(1, _AT_ONCE // len(sums_G2)))
        signs_RG = 2 * generator.integers(0, 2, (count, len(sums_G2)), dtype=np.int8) - 1
        reached += int((np.abs(signs_RG @ sums_G2[:, 0]) >= abs(true)).sum())
        done += count
    return Difference(float(true / total), float(low), float(high), (1 + reached) / (1 + SWAPS), len(grades_a), len(sums_G2))


def _sums(grades: Sequence[Grade], groups: Sequence[str]) -> np.ndarray:
    """Points and units of each group [G, 2], in order of first sight. int64."""
    order = {group: row for row, group in enumerate(dict.fromkeys(groups))}
    sums_G2 = np.zeros((len(order), 2), np.int64)
    for grade, group in zip(grades, groups, strict=True):
        sums_G2[order[group]] += (grade.points, grade.total)
    return sums_G2


def _resampled(sums_G2: np.ndarray) -> np.ndarray:
    """Sums of resamples [R, 2], each of as many groups as there are."""
    generator, count = np.random.default_rng(derive(0, "bootstrap")), len(sums_G2)
    parts, left = [], RESAMPLES
    while left:
        rows = min(left, max(1, _AT_ONCE // count))
        parts.append(sums_G2[generator.integers(0, count, (rows, count))].sum(axis=1))
        left -= rows
    return np.concatenate(parts)
