"""Averages by each benchmark's rule, against published totals."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from speechkd.evaluation.averages import CATEGORIES, AverageConfig, averages, total

WONG26A = [  # table 4 of wong26a: WER, then AC, AR, ASQA, ER, GR, SI, SQA, and the total that it prints
    ("IFT 120K", 16.9, (26.9, 51.2, 33.5, 40.7, 61.1, 23.8, 73.7), 49.2),
    ("IFT 240K", 24.4, (26.5, 56.2, 40.3, 34.3, 77.4, 23.9, 75.0), 51.2),
    ("KD 120K", 45.3, (13.6, 7.4, 23.3, 41.5, 23.6, 42.6, 82.1), 36.1),
    ("KD 240K", 47.9, (13.9, 5.6, 20.6, 41.8, 16.3, 21.8, 81.3), 31.7),
    ("Mix 120K", 34.7, (25.4, 53.7, 27.9, 45.7, 55.4, 39.6, 79.4), 49.0),
    ("Mix 240K", 30.6, (24.3, 67.7, 39.2, 42.8, 90.8, 42.7, 80.8), 57.2),
    ("KD120->IFT120", 36.5, (27.8, 51.3, 28.9, 34.9, 83.7, 7.3, 75.8), 46.7),
]


@pytest.mark.parametrize(("regime", "wer", "others", "printed"), WONG26A, ids=[row[0] for row in WONG26A])
def test_audiobench_totals_are_those_of_wong26a(regime: str, wer: float, others: tuple[float, ...], printed: float) -> None:
    names = CATEGORIES["audiobench"]
    tasks: dict[str, dict[str, object]] = {name: {"student": score / 100} for name, score in zip(names[1:], others, strict=True)}
    tasks["ASR"] = {"student": 0.1, "parsers": {"whisper": {"value": 1 - wer / 100}}}  # the strict score does not enter
    found = averages(AverageConfig(rule="audiobench", categories={name: [name] for name in names}), tasks)
    assert found["total"] == pytest.approx(printed, abs=0.0501) and found["categories"]["ASR"] == pytest.approx(100 - wer)


def test_a_part_of_a_benchmark_has_no_total() -> None:
    config = AverageConfig(rule="dynamic_superb", categories={"audio": ["a", "b"], "content": ["gone"]})
    found = averages(config, {"a": {"student": 0.5}, "b": {"student": 0.25}})
    assert found == {"rule": "dynamic_superb", "categories": {"audio": 37.5}, "total": None}
    assert total("dynamic_superb", dict.fromkeys(CATEGORIES["dynamic_superb"], 40.0)) == 40.0


def test_an_unknown_category_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean `ASQA`"):
        AverageConfig(rule="audiobench", categories={"ASQ": ["x"]})
