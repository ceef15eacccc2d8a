"""Sends a run's journal to MLflow in batches and saves its progress in `RUN_DIR/mlflow.json`, where any later sender continues.

A batch that is sent twice (after a kill) is stored once: MLflow keys points by name, timestamp, step and value, and all four come from the
journal. `sync(run_dir)` sends what is left after an outage; `mlflow_process` sends during training.
"""

from __future__ import annotations

import fcntl
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechkd.core.errors import InputError
from speechkd.core.files import read_json, write_json
from speechkd.core.log import say
from speechkd.tracking.journal import JOURNAL, Record, now_ms, records_from, writer_alive
from speechkd.tracking.mlflow_client import BATCH_METRICS, MlflowRun, Point, existing_run, find_or_make_run, one_line

STATE = "mlflow.json"
POLL_S = 0.5
GRACE_S = 20.0
"""Time limit for all attempts after training has ended, so that the sender exits within 30 s"""


def sync(run_dir: Path, uri: str | None = None, experiment: str = "speechkd") -> int:
    """Send everything that MLflow does not have yet, and the status; returns the number of metric points sent.

    Raises InputError if the run was never tracked and no `uri` is given, or if another sender is running; ConnectionError if the server
    does not answer.
    """
    if uri is not None:
        set_target(run_dir, uri, experiment)
    elif not (run_dir / STATE).exists():
        raise InputError(f"`{run_dir}` was never sent to MLflow: name a tracking uri (no {STATE} in it)")
    with sender_lock(run_dir, wait_s=GRACE_S) as locked:
        if not locked:
            raise InputError(f"a sender is at work on `{run_dir}` already")
        sender = Sender(run_dir)
        try:
            sender.attach(running=False)
            sender.drain()
            sender.finish(sender.final_status(writer_alive(sender.last_status)))
        except Exception as error:  # any client error becomes one line for the user: nothing is lost, try again
            uri = sender.state["tracking_uri"]
            raise ConnectionError(f"MLflow at {uri} did not take the run: {one_line(error)}; the journal keeps it") from error
        return sender.sent


class Sender:
    """Sends one run folder to one MLflow run. Methods raise the client's exceptions; call them again to continue."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.journal = run_dir, run_dir / JOURNAL
        self.state: dict[str, Any] = read_json(run_dir / STATE)
        self.sent = 0
        self.last_status: Record | None = None
        self.last_ms = now_ms()
        self._run: MlflowRun | None = None
        self._system: deque[Point] = deque(maxlen=20_000)  # a day and more

    @property
    def attached(self) -> bool:
        """Whether `attach` succeeded."""
        return self._run is not None

    @property
    def run(self) -> MlflowRun:
        """The MLflow run, once attached."""
        assert self._run is not None, "attach first"
        return self._run

    def attach(self, running: bool) -> None:
        """Find or create the MLflow run; `running` reopens an ended one."""
        run: MlflowRun | None = None
        uri, run_id = self.state["tracking_uri"], self.state.get("run_id")
        if run_id:
            run = existing_run(uri, run_id)
            if run is None:
                say(f"mlflow: run {run_id} is gone from the server; the whole journal goes into a new one")
                self.state |= {"run_key": uuid.uuid4().hex, "offset": 0}
        if run is None:
            first = next(records_from(self.journal, 0), None)
            start_ms = first[0]["time_ms"] if first else now_ms()
            run = find_or_make_run(uri, self.state["experiment"], self.state["run_key"], self.run_dir.resolve().name, start_ms)
            self._save_state({"run_id": run.id})
        if running:
            run.reopen()
        self._restore_status()
        self._run = run

    def _restore_status(self) -> None:
        """Restore the latest status from the records that were sent before."""
        self.last_status = None
        if self.journal.exists() and self.state["offset"] > self.journal.stat().st_size:
            say(f"mlflow: {self.journal} is shorter than before; sending it from the beginning")
            self.state["offset"] = 0
        for record, end in records_from(self.journal, 0):
            if end > self.state["offset"]:
                break
            self._track_status(record)

    def _track_status(self, record: Record) -> None:
        self.last_ms = record["time_ms"]
        if record["kind"] == "status":
            self.last_status = record

    def drain(self, deadline: float = float("inf")) -> bool:
        """Send all new records, saving the offset after each batch; False if `deadline` (monotonic clock) came first."""
        while self._next_batch():
            if time.monotonic() > deadline:
                return False
        self.run.send_metrics(list(self._system))
        self._system.clear()
        self._send_artifacts()
        return True

    def _next_batch(self) -> bool:
        """Send about 1,000 points; False if there was nothing new. The journal has each (metric, step) once, so no point is sent twice."""
        offset, files = self.state["offset"], list(self.state["artifacts"])
        points: list[Point] = []
        params: list[Mapping[str, str]] = []
        tags: dict[str, str] = {}
        for record, offset in records_from(self.journal, offset):
            self._track_status(record)
            match record["kind"]:
                case "metric":
                    points += [(name, float(value), record["time_ms"], record["step"]) for name, value in record["values"].items()]
                case "param":
                    params.append(record["values"])  # record by record: the first value of a param must win
                case "tag":
                    tags |= record["values"]
                case "artifact" if record["path"] not in files:
                    files.append(record["path"])
            if len(points) >= BATCH_METRICS:
                break
        if offset == self.state["offset"]:
            return False
        for values in params:
            self.run.send_params(values)
        self.run.send_tags(tags)
        self.run.send_metrics(points)
        self.sent += len(points)
        self._save_state({"offset": offset, "artifacts": files})
        return True

    def _send_artifacts(self) -> None:
        """Upload pending artifacts. A failure must not block metrics: it is reported, and the file is retried at the next sync."""
        pending, home = list(self.state["artifacts"]), self.run_dir.resolve()
        if not pending:
            return
        left: list[str] = []
        for relative in pending:
            path = (home / relative).resolve()
            if not path.is_file() or not path.is_relative_to(home):
                say(f"mlflow: artifact `{relative}` is not a file of the run folder")
                continue
            folder = Path(relative).parent.as_posix()
            try:
                self.run.send_file(path, None if folder == "." else folder)
            except Exception as error:  # depends on the artifact store and its client library
                say(f"mlflow: artifact `{relative}` waits for the next sync: {one_line(error)}")
                left.append(relative)
        self._save_state({"artifacts": left})

    def add_system_sample(self, values: Mapping[str, float], number: int) -> None:
        """Queue system-metric sample `number` for the next batch."""
        now = now_ms()
        self._system.extend((f"system/{name}", value, now, number) for name, value in values.items())

    def final_status(self, writer_alive: bool) -> str:
        """The run's status: the journal's last one, but FAILED if that is RUNNING and its process is gone."""
        status: str = self.last_status["status"] if self.last_status else "RUNNING"
        return "FAILED" if status == "RUNNING" and not writer_alive else status

    def finish(self, status: str) -> None:
        """Set the run's status; its end time is that of the last record."""
        self.run.end(status, self.last_ms)

    def _save_state(self, changes: Mapping[str, Any]) -> None:
        """Update `mlflow.json`."""
        self.state |= changes
        write_json(self.run_dir / STATE, self.state)


def set_target(run_dir: Path, uri: str, experiment: str) -> None:
    """Point `mlflow.json` at a server and experiment; if that changes the target, the run is sent again from the beginning."""
    if uri.startswith("sqlite:///"):  # a relative path would depend on the current folder
        file = Path(uri.removeprefix("sqlite:///")).absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{file}"
    path = run_dir / STATE
    before = read_json(path) if path.exists() else {}
    if (before.get("tracking_uri"), before.get("experiment")) != (uri, experiment):
        if before:
            say(f"mlflow: this run went to {before['tracking_uri']} ({before['experiment']}); all of it goes to {uri} ({experiment}) now")
        target: dict[str, Any] = {"tracking_uri": uri, "experiment": experiment, "run_id": None, "run_key": uuid.uuid4().hex}
        write_json(path, {**target, "offset": 0, "artifacts": []})


@contextmanager
def sender_lock(run_dir: Path, wait_s: float) -> Iterator[bool]:
    """Hold the run's sender lock; yields False if another process still holds it after `wait_s`. The lock is freed if its holder dies."""
    give_up = time.monotonic() + wait_s
    with (run_dir / ".mlflow.lock").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    yield False
                    return
                time.sleep(POLL_S)
        yield True
