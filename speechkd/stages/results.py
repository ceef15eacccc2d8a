"""What an evaluation found, told to those who watch: the run's journal, and MLflow where the recipe names a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.core.log import say
from speechkd.recipe import Recipe
from speechkd.tracking.journal import JOURNAL, Journal
from speechkd.tracking.mlflow_sender import sync


def publish_results(
    recipe: Recipe, folder: Path, tasks: Mapping[str, Mapping[str, object]], step: int, files: tuple[str, ...] = ()
) -> None:
    """Results of the student after `step` steps, and files of the run folder; a server that is away gets them later by `speechkd sync`."""
    journal = Journal(folder / JOURNAL)
    journal.results(step, {f"eval/{task}/{name}": value for task, row in tasks.items() for name, value in _scores(row).items()})
    for name in files:
        journal.artifact(name)
    journal.close()
    if recipe.tracking.uri:
        try:
            sync(folder, recipe.tracking.uri, recipe.tracking.experiment)
        except (ConnectionError, InputError) as error:
            say(f"mlflow: {error}; `speechkd sync {folder}` sends it later")


def _scores(row: Mapping[str, object]) -> dict[str, float]:
    """What is worth a chart: scores, and the counts of the main split; the other systems' and splits' counts stand in summary.json."""
    numbers = {name: float(value) for name, value in row.items() if isinstance(value, (int, float))}
    return {name: value for name, value in numbers.items() if not name.endswith(("_n", "_unparsable"))}
