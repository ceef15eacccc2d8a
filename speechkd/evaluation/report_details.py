"""What stands below a task's bars in the report: intervals, controls, errors, other parsers, groups. The summary is untrusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Details:
    """One task's lines; `warning` is empty where the student beats its control by more than its interval."""

    warning: str
    interval: tuple[float, float] | None
    """of the student's score on the main split, by what makes it widest"""
    lines: list[tuple[str, str]]
    """(what, figures)"""
    groups: list[tuple[str, str, float, int]]
    """(field, value, score, n)"""


def details_of(task: Mapping[str, Any]) -> Details:
    """Whatever of a summary's row is there and has the right form."""
    interval, by = _widest(task)
    lines = []
    if interval is not None:
        lines.append(("95 % interval", f"{_percent(interval[0])} to {_percent(interval[1])}, drawn by {by}"))
    null = _mapping(task.get("permutation"))
    if _number(null.get("expected")) is not None and _number(null.get("p")) is not None:
        over = "all pairings" if null.get("pairings") == "all" else "random pairings"
        lines.append(("shuffled audio", f"{_percent(null['expected'])} expected over all pairings, p = {null['p']:.2g} ({over})"))
    controls = {str(name): value for name, value in _mapping(task.get("controls")).items() if _number(value) is not None}
    lines += [(name.replace("_", " "), _percent(value)) for name, value in controls.items()]
    edits = {name: _number(_mapping(task.get("edits")).get(name)) for name in ("substitutions", "deletions", "insertions", "total")}
    if all(value is not None for value in edits.values()):
        lines.append(("errors", ", ".join(f"{value:,.0f} {name}" for name, value in edits.items() if name != "total")))
        lines[-1] = (lines[-1][0], f"{lines[-1][1]}, of {edits['total']:,.0f} units")
    if (right := _number(_mapping(task.get("counts")).get("right"))) is not None:
        lines.append(("equal to the reference", f"{right:,.0f} of {_number(task.get('n')) or 0:,.0f}"))
    figures = {str(name): value for name, value in _mapping(task.get("figures")).items() if _number(value) is not None}
    if figures:
        lines.append(("figures", ", ".join(f"{name} {value:.3g}" for name, value in figures.items())))
    parsers = {str(name): _number(_mapping(score).get("value")) for name, score in _mapping(task.get("parsers")).items()}
    if len(parsers) > 1:
        lines.append(("by parser", ", ".join(f"{name} {_percent(value)}" for name, value in parsers.items() if value is not None)))
    refused = {str(name): count for name, count in _mapping(task.get("refusals")).items() if _number(count)}
    if refused:
        lines.append(("refusals", ", ".join(f"{name} {count:,.0f}" for name, count in refused.items())))
    warning = "not shown to hear: the score is within its interval of the control's" if task.get("hears") is False else ""
    return Details(warning, interval, lines, _groups(task))


def _widest(task: Mapping[str, Any]) -> tuple[tuple[float, float] | None, str]:
    found = []
    for name, pair in _mapping(next(iter(_mapping(task.get("intervals")).values()), None)).items():
        if isinstance(pair, list) and len(pair) == 2 and all(_number(value) is not None for value in pair):
            found.append(((float(pair[0]), float(pair[1])), str(name)))
    return max(found, key=lambda item: item[0][1] - item[0][0]) if found else (None, "")


def _groups(task: Mapping[str, Any]) -> list[tuple[str, str, float, int]]:
    out = []
    for field, values in _mapping(task.get("slices")).items():
        for value, score in _mapping(values).items():
            points, count = _number(_mapping(score).get("value")), _number(_mapping(score).get("n"))
            if points is not None and count is not None:
                out.append((str(field), str(value), points, int(count)))
    return out


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
