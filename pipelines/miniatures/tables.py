"""Makes a miniature's result table from its runs: means with confidence intervals, and a verdict on the claim by paired differences."""

from __future__ import annotations

import datetime
import math
import os
import platform
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from scipy.stats import t as student_t

Scores = dict[str, float]
"""Measure -> percentage correct, for one run"""
SYSTEMS = {"student": "", "unseen": ", unseen", "reads": ", read"}
"""Key in a summary -> suffix of the task's name: known voices, unseen voices, metadata read in place of the clip"""


@dataclass(frozen=True, slots=True)
class Judged:
    """All of a miniature's results."""

    claim: str
    seeds: Sequence[int]
    expect: Mapping[str, Sequence[tuple[str, str]]]
    scores: Mapping[str, Sequence[Scores]]
    """variant -> scores in the order of the seeds"""
    base: Scores | None = None


def scores_of(
    tasks: Mapping[str, Mapping[str, Any]], means: Mapping[str, Sequence[str]] = MappingProxyType({}), all_tasks: Collection[str] = ()
) -> Scores:
    """Scores `<task>` (known voices), `<task>, unseen` and `<task>, read`, each group followed by its overall mean and the given `means`.

    A run that lacks one of `all_tasks` gets no overall mean.
    """
    scores: Scores = {}
    for key, label in SYSTEMS.items():
        values = {task: 100 * row[key] for task, row in tasks.items() if row.get(key) is not None}
        scores |= {f"{task}{label}": value for task, value in values.items()}
        if values:
            for name, chosen in {"mean": list(all_tasks or values), **means}.items():
                if all(task in values for task in chosen):
                    scores[f"{name}{label}"] = statistics.fmean(values[task] for task in chosen)
    return scores


def half_interval(values: Sequence[float]) -> float:
    """Half width of the mean's 95 % confidence interval, by Student's t; nan for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float], sign: str = "") -> str:
    """mean ± half the 95 % interval"""
    mean, half = statistics.fmean(values), half_interval(values)
    return f"{mean:{sign}.1f}" if math.isnan(half) else f"{mean:{sign}.1f} ± {half:.1f}"


def verdict(differences: Sequence[float]) -> str:
    """Verdict on a claim that the paired differences (one per seed) are above 0."""
    mean, half = statistics.fmean(differences), half_interval(differences)
    if mean > 0 and not math.isnan(half) and mean - half > 0:
        return "holds"
    if mean > 0:
        return "direction holds, the interval includes 0"
    return "does not hold: the opposite does" if mean + half < 0 else "does not hold"


def markdown(paper: str, judged: Judged) -> str:
    """The result document: a row per measure and a column per variant, then the claim, pair by pair."""
    names = max((list(rows[0]) for rows in judged.scores.values()), key=lambda measured: len(measured))
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    before = ["before"] if judged.base is not None else []
    lines = [
        f"# {paper} in miniature",
        "",
        f"Claim: {judged.claim}. {len(judged.seeds)} seeds, mean ± half of the 95 % interval over seeds, % right, greedy.",
        "",
        f"`make miniature PAPER={paper}`, {machine}, {datetime.date.today().isoformat()}",
        "",
        "| % right | " + " | ".join([*before, *judged.scores]) + " |",
        "|---" * (len(before) + len(judged.scores) + 1) + "|",
    ]
    for name in names:
        start = [] if judged.base is None else [f"{judged.base[name]:.1f}" if name in judged.base else "–"]
        cells = [interval([row[name] for row in rows]) if name in rows[0] else "–" for rows in judged.scores.values()]
        lines.append(f"| {name} | " + " | ".join([*start, *cells]) + " |")
    lines += ["", "| expected | on | difference, seed by seed | |", "|---|---|---|---|"]
    for measure, pairs in judged.expect.items():
        for better, worse in pairs:
            differences = [a[measure] - b[measure] for a, b in zip(judged.scores[better], judged.scores[worse], strict=True)]
            lines.append(f"| {better} above {worse} | {measure} | {interval(differences, '+')} | {verdict(differences)} |")
    return "\n".join(lines) + "\n"
