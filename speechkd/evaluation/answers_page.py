"""Writes an HTML page: the worst answers in a column (one teacher's stored answers), by each quality gate.

All text is escaped; no scripts, no network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from speechkd.core.files import write_text

MAX_CHARS = 1200
"""Longer texts are cut to this many characters"""


@dataclass(frozen=True, slots=True)
class WorstAnswer:
    """One answer with its question and metadata."""

    key: str
    turn: str
    """which question about the clip, e.g. `open-0` or `task-gender`"""
    question: str
    text: str
    metadata: str
    badness: float
    """the gate's measure, turned so that higher is worse"""


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate: how many answers it drops (None: not set in the recipe), the mean badness of all answers, and the worst ones."""

    name: str
    drops: int | None
    mean: float
    worst: list[WorstAnswer]


def write_answers_page(out: Path, column: str, summary: str, gates: Iterable[Gate]) -> Path:
    """Write the page to `out` and return it."""
    environment = Environment(
        loader=PackageLoader("speechkd.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = _shortened
    page = environment.get_template("answers.html.j2").render(column=column, summary=summary, gates=list(gates))
    write_text(out, page)
    return out


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + " …"
