"""One number for many tasks, by the rule of the benchmark that they belong to; a part of a benchmark has none."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any, Literal

from pydantic import model_validator

from speechkd.core.config import Config
from speechkd.core.errors import unknown_name

CATEGORIES = {
    "audiobench": ("ASR", "AC", "AR", "ASQA", "ER", "GR", "SI", "SQA"),
    "dynamic_superb": ("audio", "content", "degradation", "paralinguistic", "semantic", "speaker"),
}
"""Rule -> what it is the mean of. AudioBench's ASR enters as 100 - WER behind Whisper's normaliser (wong26a, table 4)"""
ERROR_RATES = ("ASR",)


class AverageConfig(Config):
    """Which tasks make up the categories of a benchmark."""

    rule: Literal["audiobench", "dynamic_superb"]
    categories: dict[str, list[str]]
    """category -> names of tasks in the summary; several count equally"""

    @model_validator(mode="after")
    def _known_categories(self) -> AverageConfig:
        for name in self.categories:
            if name not in CATEGORIES[self.rule]:
                raise ValueError(unknown_name("category", name, CATEGORIES[self.rule]))
        return self


def averages(config: AverageConfig, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Score of each category, 0 to 100, and the total; the total is None where a category has no score."""
    scores = {}
    for category, names in config.categories.items():
        found = [_score(category, tasks[name]) for name in names if name in tasks]
        values = [score for score in found if score is not None]
        if len(values) == len(names) > 0:
            scores[category] = mean(values)
    return {"rule": config.rule, "categories": scores, "total": total(config.rule, scores)}


def total(rule: str, scores: Mapping[str, float]) -> float | None:
    """Mean over the rule's categories of scores from 0 to 100 (ASR: 100 - WER in %); None where one lacks."""
    return mean(scores[name] for name in CATEGORIES[rule]) if set(CATEGORIES[rule]) <= set(scores) else None


def _score(category: str, row: Mapping[str, Any]) -> float | None:
    whisper = row.get("parsers", {}).get("whisper") if category in ERROR_RATES else None
    value = whisper["value"] if whisper is not None else row.get("student")
    return None if value is None else 100 * float(value)
