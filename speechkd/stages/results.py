"""Publishes evaluation results to the journal and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.core.log import say
from speechkd.tracking import TrackingConfig
from speechkd.tracking.journal import JOURNAL, Journal
from speechkd.tracking.mlflow_sender import sync


def publish_results(
    tracking: TrackingConfig, folder: Path, tasks: Mapping[str, Mapping[str, object]], step: int, files: tuple[str, ...] = ()
) -> None:
    """Publish the student's results after `step` steps, and `files` of the run folder. `speechkd sync` catches up after an outage."""
    journal = Journal(folder / JOURNAL)
    journal.results(step, {f"eval/{task}/{name}": value for task, row in tasks.items() for name, value in _scores(row).items()})
    for name in files:
        journal.artifact(name)
    journal.close()
    if tracking.uri:
        try:
            sync(folder, tracking.uri, tracking.experiment)
        except (ConnectionError, InputError) as error:
            say(f"mlflow: {error}; `speechkd sync {folder}` sends it later")


def _scores(row: Mapping[str, object]) -> dict[str, float]:
    """The numbers worth a chart: scores, and counts of the main split. The other counts are in summary.json only."""
    numbers = {name: float(value) for name, value in row.items() if isinstance(value, (int, float))}
    return {name: value for name, value in numbers.items() if not name.endswith(("_n", "_unparsable"))}
