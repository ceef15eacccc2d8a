"""The null of "the student does not hear", from answers that are already given: every pairing of answers with references.

Where all clips of a task are asked the same question, the answer to another clip's audio is the answer that this clip got. So the score
under shuffled audio has an exact expectation over all n! pairings, and the model is not asked again. The p-value is the share of pairings
that score at least as much as the true one: exact where every answer is one unit (rook polynomials: the pairings of two lists of classes
are counted by their matches), else from seeded random pairings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, factorial

import numpy as np

from speechkd.core.seeds import derive
from speechkd.evaluation.scorers import UNITS

DRAWS = 10_000
"""Random pairings for a p-value that cannot be counted"""

Units = Sequence[Sequence[str] | None]
"""What each answer says in the units of its task; None for an unparsable one"""


@dataclass(frozen=True, slots=True)
class Null:
    """The score over all pairings: expectation, standard deviation, and how rare one as high as the true pairing's is."""

    expected: float
    deviation: float
    p: float
    pairings: str
    """what `p` was counted over: `all`, or the number of random ones"""


def units_of(kind: str, texts: Sequence[str], choices: Sequence[str]) -> list[list[str] | None]:
    """Each answer in the units of its task's kind; None for an unparsable one."""
    units = UNITS.get(kind)
    return [units(text, choices) for text in texts]


def reference_units(kind: str, references: Sequence[str]) -> list[list[str]]:
    """Each reference in the units of its task's kind."""
    return [units or [] for units in units_of(kind, references, ())]


def permutation_null(answers: Units, references: Sequence[Sequence[str]]) -> Null | None:
    """The null of a task; None for fewer than two answers, or no unit to get right."""
    total = sum(map(len, references))
    if len(answers) < 2 or not total:
        return None
    points_NN = pair_points(answers, references)
    expected = points_NN.mean(axis=1).sum() / total
    centred_NN = points_NN - points_NN.mean(axis=1, keepdims=True) - points_NN.mean(axis=0, keepdims=True) + points_NN.mean()
    deviation = float(np.sqrt(np.square(centred_NN).sum() / (len(answers) - 1))) / total  # Hoeffding 1951: exact over all pairings
    true = int(np.trace(points_NN))
    if all(answer is None or len(answer) == 1 for answer in answers) and all(len(reference) == 1 for reference in references):
        given, wanted = [answer[0] if answer else None for answer in answers], [reference[0] for reference in references]
        return Null(float(expected), deviation, matching_tail(given, wanted, true), "all")
    return Null(float(expected), deviation, _drawn_tail(points_NN, true), str(DRAWS))


def pair_points(answers: Units, references: Sequence[Sequence[str]]) -> np.ndarray:
    """Points [N, N] of every answer (row) for every reference: units less edit distance; 0 for an unparsable answer. int64."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    letters: dict[str, str] = {}

    def spelled(units: Sequence[str]) -> str:
        """One character a unit, so that a whole table of distances is one call."""
        return "".join(
            letters.setdefault(unit, chr(0xE000 + len(letters) if len(letters) < 0x1000 else 0x20000 + len(letters))) for unit in units
        )

    given, wanted = [spelled(answer or ()) for answer in answers], [spelled(reference) for reference in references]
    distance_NN = cdist(given, wanted, scorer=Levenshtein.distance, dtype=np.int64)
    points_NN = np.array([len(reference) for reference in references])[None] - distance_NN
    points_NN[[answer is None for answer in answers]] = 0
    return np.asarray(points_NN)


def matching_tail(given: Sequence[str | None], wanted: Sequence[str], at_least: int) -> float:
    """Share of all pairings of two lists in which at least so many pairs are equal, exactly; None equals nothing."""
    n, answers, references = len(wanted), Counter(given), Counter(wanted)
    rooks = [1]  # rooks[k]: ways to choose k pairs that are equal, no two in a row or column
    for name, count in references.items():
        both = min(answers[name], count)
        block = [comb(answers[name], k) * comb(count, k) * factorial(k) for k in range(both + 1)]
        rooks = [
            sum(rooks[i] * block[k - i] for i in range(max(0, k - both), min(k, len(rooks) - 1) + 1)) for k in range(len(rooks) + both)
        ]
    # Pairings with at least m equal pairs, by inclusion and exclusion over the chosen ones (Stanley, Enumerative Combinatorics 1, 2.3).
    m = max(at_least, 0)
    if m == 0:
        return 1.0
    found = sum((-1) ** (k - m) * comb(k - 1, m - 1) * rooks[k] * factorial(n - k) for k in range(m, len(rooks)))
    return float(Fraction(found, factorial(n)))


def _drawn_tail(points_NN: np.ndarray, true: int) -> float:
    """Share of random pairings that reach the true one's points, itself among them, so that no p-value is 0."""
    generator, count = np.random.default_rng(derive(0, "permutation")), len(points_NN)
    rows = np.arange(count)
    reached = sum(int(points_NN[rows, generator.permutation(count)].sum()) >= true for _ in range(DRAWS))
    return (1 + reached) / (1 + DRAWS)
