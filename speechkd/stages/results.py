"""Publishes evaluation results to the journal and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from speechkd.core.errors import InputError
from speechkd.core.files import read_json
from speechkd.core.log import say
from speechkd.evaluation.score_table import score_table
from speechkd.tracking import TrackingConfig
from speechkd.tracking.journal import JOURNAL, Journal, read_journal
from speechkd.tracking.mlflow_sender import bytes_behind, sync
from speechkd.tracking.prometheus import MetricsFile
from speechkd.tracking.records import MEAN_SCORE

REPORT = "report.html"
Tasks = Mapping[str, Mapping[str, object]]


def publish_results(tracking: TrackingConfig, folder: Path, tasks: Tasks, step: int, files: tuple[str, ...] = ()) -> None:
    """Publish the student's results after `step` steps, and `files` of the run folder. `speechkd sync` catches up after an outage."""
    journal = Journal(folder / JOURNAL)
    for dataset, rows in _by_dataset(folder, tasks).items():
        scores = {f"eval/{task}/{name}": value for task, row in rows.items() for name, value in _scores(row).items()}
        journal.results(step, scores, dataset)
    students = [float(row["student"]) for row in tasks.values() if isinstance(row.get("student"), (int, float))]  # type: ignore[arg-type]
    if students:
        journal.results(step, {MEAN_SCORE: mean(students)})
    for name in files:
        journal.artifact(name)
    journal.close()
    send(tracking, folder)


def show_results(folder: Path, summary: Path) -> None:
    """Print an evaluation's table, and where its summary and the run's report are: the last words of `run` and `eval`."""
    if tasks := read_json(summary)["tasks"]:
        print(score_table(tasks))
    print(f"summary  {summary}")
    page = folder / REPORT
    print(f"report   {page}" if page.is_file() else f"report   none yet: `speechkd report {folder}` writes it")


def send(tracking: TrackingConfig, folder: Path) -> None:
    """Send the run to MLflow where the recipe names a server, and renew the Prometheus file; an outage is one line."""
    if tracking.uri:
        try:
            sync(folder, tracking.uri, tracking.experiment)
        except (ConnectionError, InputError) as error:
            say(f"mlflow: {error}; `speechkd sync {folder}` sends it later")
    MetricsFile(folder, tracking.prometheus_dir).write(bytes_behind(folder) if tracking.uri else None)


def _by_dataset(folder: Path, tasks: Tasks) -> dict[tuple[str, str] | None, dict[str, Mapping[str, object]]]:
    """Dataset (name, digest) of the run -> its tasks. Where a run has several, a task's name begins with its dataset's."""
    records = [record for record in read_journal(folder / JOURNAL) if record["kind"] == "dataset"]
    datasets = {record["name"]: (record["name"], record["digest"]) for record in records}
    only = next(iter(datasets.values())) if len(datasets) == 1 else None
    out: dict[tuple[str, str] | None, dict[str, Mapping[str, object]]] = {}
    for task, row in tasks.items():
        out.setdefault(only or datasets.get(task.partition("/")[0]), {})[task] = row
    return out


def _scores(row: Mapping[str, object]) -> dict[str, float]:
    """The numbers worth a chart: scores, and counts of the main split. The other counts are in summary.json only."""
    numbers = {name: float(value) for name, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return {name: value for name, value in numbers.items() if not name.endswith(("_n", "_unparsable"))}
