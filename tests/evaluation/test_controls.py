"""How sure a score is: the permutation null, bootstrap intervals, and the test of two runs, beside brute force and other libraries."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import hypergeom

from speechkd.evaluation.grading import summarise
from speechkd.evaluation.intervals import interval, paired
from speechkd.evaluation.permutation import matching_tail, pair_points, permutation_null, reference_units, units_of
from speechkd.evaluation.scorers import SCORERS, Grade

RANDOM = np.random.default_rng(17)


def drawn(count: int, words: int = 3) -> list[str]:
    return [" ".join(RANDOM.choice(list("abcd"), RANDOM.integers(1, words + 1))) for _ in range(count)]


@pytest.mark.parametrize("kind, words", [("words", 3), ("choice", 1), ("characters", 3)])
def test_points_of_every_pair_are_the_scorers(kind: str, words: int) -> None:
    answers, references = [*drawn(14, words), "", "x"], drawn(16, words)
    choices = list("abcd") if kind != "characters" else []
    points_NN = pair_points(units_of(kind, answers, choices), reference_units(kind, references))
    scorer = SCORERS.get(kind)
    assert points_NN.tolist() == [[scorer(answer, reference, choices).points for reference in references] for answer in answers]


@pytest.mark.parametrize("kind, words", [("words", 3), ("choice", 1)])
def test_expectation_and_deviation_are_exact_and_2000_random_pairings_agree(kind: str, words: int) -> None:
    answers, references = drawn(60, words), drawn(60, words)
    units, wanted = units_of(kind, answers, []), reference_units(kind, references)
    null = permutation_null(units, wanted)
    assert null is not None
    points_NN, total = pair_points(units, wanted), sum(map(len, wanted))
    scores = np.array([points_NN[np.arange(60), RANDOM.permutation(60)].sum() / total for _ in range(2000)])
    assert abs(scores.mean() - null.expected) <= 3 * null.deviation / np.sqrt(2000)
    assert scores.std() == pytest.approx(null.deviation, rel=0.1)
    few = permutation_null(units[:6], wanted[:6])
    assert few is not None
    every = [points_NN[range(6), list(order)].sum() / sum(map(len, wanted[:6])) for order in permutations(range(6))]
    assert (few.expected, few.deviation) == (pytest.approx(np.mean(every)), pytest.approx(np.std(every)))


def test_share_of_all_pairings_is_counted_and_is_fishers_for_two_classes() -> None:
    given, wanted = ["a", "b", "b", None, "a", "c", "b"], ["a", "a", "b", "c", "b", "b", "d"]
    matches = [sum(given[i] == wanted[j] for i, j in enumerate(order)) for order in permutations(range(7))]
    for at_least in range(9):
        assert matching_tail(given, wanted, at_least) == pytest.approx(np.mean([m >= at_least for m in matches]), abs=1e-12)
    answers, references = ["f"] * 180 + ["m"] * 140, ["f"] * 170 + ["m"] * 150
    both = 110  # pairs of f with f; with the margins they fix all matches
    assert matching_tail(answers, references, both + (140 - (170 - both))) == pytest.approx(hypergeom.sf(both - 1, 320, 170, 180), rel=1e-9)


def test_a_student_that_says_one_thing_is_not_shown_to_hear() -> None:
    null = permutation_null([["f"]] * 40, [["f"]] * 25 + [["m"]] * 15)
    assert null is not None and (null.expected, null.deviation, null.p, null.pairings) == (pytest.approx(25 / 40), 0, 1.0, "all")
    perfect = permutation_null([["f"]] * 20 + [["m"]] * 20, [["f"]] * 20 + [["m"]] * 20)
    assert perfect is not None and perfect.expected == pytest.approx(0.5) and 0 < perfect.p < 1e-10
    assert permutation_null([["f"]], [["f"]]) is None


def grades(points: list[int]) -> list[Grade]:
    return [Grade(p, 1, True, substitutions=1 - p) for p in points]


def test_an_interval_by_clip_covers_as_often_as_it_says_and_one_by_speaker_is_wider() -> None:
    covered = 0
    for _ in range(60):
        found = interval(grades(RANDOM.binomial(1, 0.7, 150).tolist()), [str(i) for i in range(150)])
        assert found is not None
        covered += found[0] <= 0.7 <= found[1]
    assert covered / 60 >= 0.85
    of_speaker = np.repeat(RANDOM.binomial(1, 0.7, 15), 10)  # a speaker's clips are all right or all wrong
    clips = interval(grades(of_speaker.tolist()), [str(i) for i in range(150)])
    speakers = interval(grades(of_speaker.tolist()), [str(i // 10) for i in range(150)])
    assert clips is not None and speakers is not None and speakers[1] - speakers[0] > 2 * (clips[1] - clips[0])
    assert interval(grades([1, 0]), ["one", "one"]) is None


def test_two_runs_are_compared_on_the_same_questions() -> None:
    groups = [str(i) for i in range(300)]
    worse = RANDOM.binomial(1, 0.6, 300)
    better = np.maximum(worse, RANDOM.binomial(1, 0.25, 300))
    found = paired(grades(better.tolist()), grades(worse.tolist()), groups)
    assert found is not None and found.value == pytest.approx((better - worse).mean()) and found.low > 0 and found.p < 0.001
    back = paired(grades(worse.tolist()), grades(better.tolist()), groups)
    assert back is not None and (back.value, back.p) == (-found.value, found.p)
    same = paired(grades(worse.tolist()), grades(worse.tolist()), groups)
    assert same is not None and (same.value, same.p) == (0, 1.0)
    by_chance = [paired(grades(a), grades(b), groups) for a, b in (RANDOM.binomial(1, 0.5, (2, 300)).tolist() for _ in range(15))]
    assert sum(found is not None and found.p < 0.05 for found in by_chance) <= 4


def test_insertions_reach_the_interval() -> None:
    found = interval([Grade(1, 1, True, insertions=2)] * 5 + [Grade(1, 1, True)] * 5, [str(i) for i in range(10)])
    assert found is not None and found[0] < 0 and summarise([Grade(1, 1, True, insertions=2)]) is not None
