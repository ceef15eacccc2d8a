"""Reads a real MLflow store (its sqlite file) without MLflow, and computes what a run's journal should have put there."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from speechkd.tracking.journal import JOURNAL, read_journal

Point = tuple[str, int, float, int]
"""metric, step, value, time in ms"""


class Store:
    """The sqlite file behind a tracking uri or server."""

    def __init__(self, file: Path) -> None:
        self.file, self.uri = file, f"sqlite:///{file}"

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=30) as connection:
            return connection.execute(query, values).fetchall()

    def runs(self, name: str) -> list[tuple[str, str, int, int | None]]:
        """(run id, status, start, end) of the runs called `name`."""
        return self._rows("select run_uuid, status, start_time, end_time from runs where name = ?", name)

    def points(self, run_id: str) -> list[Point]:
        """All points but system metrics, sorted, duplicates included."""
        columns = "key, step, case is_nan when 1 then null else value end, timestamp"
        rows = self._rows(f"select {columns} from metrics where run_uuid = ?", run_id)
        return sorted((tuple(row) for row in rows if not row[0].startswith("system/")), key=lambda row: (row[0], row[1], row[3]))

    def names(self, run_id: str) -> set[str]:
        """Names of all metrics."""
        return {row[0] for row in self._rows("select distinct key from metrics where run_uuid = ?", run_id)}

    def latest(self, run_id: str) -> dict[str, float]:
        """The value that a run's page shows of each metric."""
        return dict(self._rows("select key, value from latest_metrics where run_uuid = ?", run_id))

    def params(self, run_id: str) -> dict[str, str]:
        """All params."""
        return dict(self._rows("select key, value from params where run_uuid = ?", run_id))

    def tags(self, run_id: str) -> dict[str, str]:
        """All tags."""
        return dict(self._rows("select key, value from tags where run_uuid = ?", run_id))

    def experiment_tags(self, name: str) -> dict[str, str]:
        """All tags of an experiment."""
        query = "select t.key, t.value from experiment_tags t join experiments e on e.experiment_id = t.experiment_id where e.name = ?"
        return dict(self._rows(query, name))


def wanted(run: Path) -> list[Point]:
    """The points of a run's journal, in the order of `Store.points`."""
    points = [
        (name, record["step"], float(value), record["time_ms"])
        for record in read_journal(run / JOURNAL)
        if record["kind"] == "metric"
        for name, value in record["values"].items()
    ]
    return sorted(points, key=lambda row: (row[0], row[1], row[3]))


def only_run(store: Store, run: Path) -> tuple[str, str, int, int | None]:
    """(run id, status, start, end) of the one MLflow run of a run folder."""
    found = store.runs(run.name)
    assert len(found) == 1, f"one MLflow run for one run folder, found {found}"
    return found[0]
