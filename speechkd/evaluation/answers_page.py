"""Writes an HTML page with a column's worst answers by each quality gate. All text is escaped; no scripts, no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from speechkd.core.files import write_text

SHOWN = 1200
"""Longer texts are cut to this many characters"""


@dataclass(frozen=True, slots=True)
class WorstAnswer:
    """One answer with its question and metadata."""

    key: str
    turn: str
    question: str
    text: str
    metadata: str
    badness: float


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate: how many answers it drops (None: not set in the recipe), the mean of its measure, and its worst answers."""

    name: str
    drops: int | None
    mean: float
    worst: list[WorstAnswer]


def write_answers_page(out: Path, column: str, summary: str, gates: Iterable[Gate]) -> Path:
    """Write the page to `out` and return it."""
    environment = Environment(
        loader=PackageLoader("speechkd.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = _shown
    page = environment.get_template("answers.html.j2").render(column=column, summary=summary, gates=list(gates))
    write_text(out, page)
    return out


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"
