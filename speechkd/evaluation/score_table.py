"""An evaluation's scores as a table of text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTROLS = ("teacher", "reads", "shuffled", "untrained", "chance")
COUNTS = ("n", "unparsable")


def score_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a task: the student on each split, the teacher and the controls in percent, then counts. Empty columns are left out.

    `tasks`: as in summary.json.
    """
    others = dict.fromkeys(label for row in tasks.values() for label in list(row.get("splits") or {})[1:])
    names = [name for name in ("student", *others, *CONTROLS, *COUNTS) if any(_is_number(row.get(name)) for row in tasks.values())]
    rows = [["task", *names], *([task, *(_cell(name, row.get(name)) for name in names)] for task, row in tasks.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(name: str, value: object) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value:.0f}" if name in COUNTS else f"{100 * value:.1f} %"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))
