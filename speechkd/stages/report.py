"""`speechkd report RUN`: the run's page, from what lies in its folder."""

from __future__ import annotations

from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.evaluation.report import write_report
from speechkd.stages.run import REPORT
from speechkd.stages.train import RECIPE


def report(path: Path) -> Path:
    """Write report.html into a run folder. Raises InputError for anything else."""
    if not (path / RECIPE).is_file():
        raise InputError(f"`{path}` is no run folder: it has no {RECIPE}")
    return write_report(path, path / REPORT)
