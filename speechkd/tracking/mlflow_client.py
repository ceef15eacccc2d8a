"""Thin wrapper around the MLflow client: creates or finds a run and sends data within MLflow's limits. Models are in `mlflow_models`.

The client's own retries are switched off: the caller retries and keeps unsent data.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkd.core.log import say

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BATCH_METRICS, BATCH_NAMED = 1000, 100  # what one log_batch call of the server takes
NAME_LIMIT, PARAM_LIMIT, TAG_LIMIT, CUT = 250, 500, 5000, "...[cut]"
REQUEST_S = 8
RUN_KEY = "speechkd.run_key"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's own value for experiments that are not chat agents
SOURCE = {"mlflow.source.name": "speechkd", "mlflow.source.type": "LOCAL"}
MLFLOW_TAGS = {
    "git": "mlflow.source.git.commit",
    "git_dirty": "mlflow.source.git.dirty",
    "user": "mlflow.user",
    "description": "mlflow.note.content",
}
"""Our tag -> the tag that MLflow's UI shows as commit, creator or description"""
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # permanent: retrying cannot help

Point = tuple[str, float, int, int]
"""Metric, value, time in ms, step"""


class MlflowRun:
    """One run in MLflow. Methods raise the client's exceptions; data that the server refuses for good is reported and skipped."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.client, self.id = client, str(run.info.run_id)
        self.experiment_id = str(run.info.experiment_id)
        self._status = run.info.status
        self._params: dict[str, str] = dict(run.data.params)

    def reopen(self) -> None:
        """Set the status of an ended run back to RUNNING."""
        if self._status != "RUNNING":
            self.end("RUNNING", 0)

    def end(self, status: str, end_ms: int) -> None:
        """Set the run's status, and its end time unless the status is RUNNING."""
        if status == "RUNNING":
            self.client.update_run(self.id, status=status)
        else:
            self.client.set_terminated(self.id, status=status, end_time=end_ms)

    def send_params(self, values: Mapping[str, str]) -> None:
        """Add params; an existing param keeps its value, since MLflow does not allow changes."""
        from mlflow.entities import Param

        params = {valid_name(name): cut(value, PARAM_LIMIT) for name, value in values.items()}
        changed = sorted(name for name, value in params.items() if self._params.get(name, value) != value)
        if changed:  # MLflow's params are fixed once written; the journal has both values
            say(f"mlflow: {len(changed)} params differ from the run's first start and keep their first value: {', '.join(changed[:8])}")
        new = {name: value for name, value in params.items() if name not in self._params}
        for part in _parts(list(new.items()), BATCH_NAMED):
            self._log_batch(params=[Param(*item) for item in part])
        self._params |= new

    def send_tags(self, values: Mapping[str, str]) -> None:
        """Set tags, and for those in MLFLOW_TAGS also MLflow's own tag."""
        from mlflow.entities import RunTag

        mlflow_tags = {MLFLOW_TAGS[name]: value for name, value in values.items() if name in MLFLOW_TAGS}
        for part in _parts([*values.items(), *mlflow_tags.items()], BATCH_NAMED):
            self._log_batch(tags=[RunTag(valid_name(name), cut(value, TAG_LIMIT)) for name, value in part])

    def send_metrics(self, points: Sequence[Point]) -> None:
        """Add points. A point that is sent twice with the same time is stored once."""
        from mlflow.entities import Metric

        for part in _parts(points, BATCH_METRICS):
            self._log_batch(metrics=[Metric(valid_name(name), value, time_ms, step) for name, value, time_ms, step in part])

    def send_model_metrics(self, model_id: str, points: Sequence[Point], dataset: tuple[str, str] | None) -> None:
        """Add points as measurements of a logged model on `dataset` (name, digest). The run keeps each once, sent before or not."""
        from mlflow.entities import Metric

        on = {"dataset_name": dataset[0], "dataset_digest": dataset[1]} if dataset else {}
        for part in _parts(points, BATCH_METRICS):
            self._log_batch(metrics=[Metric(valid_name(name), value, time_ms, step, model_id, **on) for name, value, time_ms, step in part])

    def _log_batch(self, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        with reporting_refusals(f"{len(metrics)} metrics, {len(params)} params, {len(tags)} tags"):
            self.client.log_batch(self.id, metrics=metrics, params=params, tags=tags)

    def send_file(self, path: Path, folder: str | None) -> None:
        """Upload one file into `folder` of the run's artifacts; None: the top level."""
        self.client.log_artifact(self.id, str(path), folder)


@contextmanager
def reporting_refusals(what: str, also: Sequence[str] = ()) -> Iterator[None]:
    """Report what the server refuses for good, instead of raising. `also`: further error codes that mean that."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in (*_REFUSED, *also):
            raise
        say(f"mlflow: the server refuses {what}; the journal keeps it: {one_line(error)}")


def existing_run(uri: str, run_id: str) -> MlflowRun | None:
    """The run with that id, or None if it was deleted."""
    client = _client(uri)
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return MlflowRun(client, run) if run.info.lifecycle_stage == "active" else None


def find_or_make_run(uri: str, experiment: str, key: str, name: str, start_ms: int) -> MlflowRun:
    """The run tagged with `key` if one exists (an earlier sender died before it saved the run id), otherwise a new run."""
    client = _client(uri)
    existing = client.get_experiment_by_name(experiment)
    experiment_id = existing.experiment_id if existing else client.create_experiment(experiment, _artifact_place(uri, experiment), KIND)
    runs = client.search_runs([experiment_id], filter_string=f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
    made = runs[0] if runs else client.create_run(experiment_id, start_time=start_ms, tags={RUN_KEY: key, **SOURCE}, run_name=name)
    return MlflowRun(client, made)


def _artifact_place(uri: str, experiment: str) -> str | None:
    """Artifact folder next to a sqlite file (MLflow's default would be the current folder); None lets a server decide."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / valid_name(experiment)).as_uri()


def _client(uri: str) -> MlflowClient:
    """The client without retries: by default a call blocks for four minutes if the server is down, for twenty if it does not answer."""
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_S),
        "GIT_PYTHON_REFRESH": "quiet",
    }
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def valid_name(name: str) -> str:
    """Make a name valid for MLflow: allowed characters, no empty or parent path parts, at most 250 characters."""
    clean = posixpath.normpath("/" + re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)).strip("/")
    return clean[:NAME_LIMIT].rstrip("/") or "_"


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def one_line(error: BaseException) -> str:
    """An exception's message on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
