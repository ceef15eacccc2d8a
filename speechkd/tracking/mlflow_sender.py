"""Sends a run's journal to MLflow in batches and saves its progress in `RUN_DIR/mlflow.json`, where any later sender continues.

A batch that is sent twice (after a kill) is stored once: MLflow keys points by name, timestamp, step and value, and all four come from the
journal. `sync(run_dir)` sends what is left after an outage; `sender_process` sends during training.
"""

from __future__ import annotations

import errno
import fcntl
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechkd.core.errors import InputError
from speechkd.core.files import read_json, write_json
from speechkd.core.log import say
from speechkd.tracking.journal import JOURNAL, now_ms, records_from, writer_alive
from speechkd.tracking.mlflow_client import BATCH_METRICS, MlflowRun, Point, existing_run, find_or_make_run, one_line
from speechkd.tracking.mlflow_models import DIGEST_LIMIT, MlflowModels
from speechkd.tracking.records import LATEST, MEAN_SCORE, Record
from speechkd.tracking.sampler import sample_files

STATE = "mlflow.json"
POLL_S = 0.5
GRACE_S = 20.0
"""Time limit for all attempts after training has ended, so that the sender exits within 30 s"""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF}
"""What a shared file system without locks answers"""


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
            raise InputError(f"a sender is at work on `{run_dir}` already: wait until it has ended")
        sender = Sender(run_dir)
        try:
            sender.attach(running=False)
            sender.drain()
            sender.finish(sender.final_status(writer_alive(sender.last_status, run_dir)))
        except Exception as error:  # any client error becomes one line for the user: nothing is lost, try again
            uri = sender.state["tracking_uri"]
            raise ConnectionError(f"MLflow at {uri} did not take the run: {one_line(error)}; the journal keeps it") from error
        return sender.sent


@dataclass(slots=True)
class _Batch:
    """What the records of one batch hold, in the order in which it is sent."""

    params: list[Mapping[str, str]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    objects: list[tuple[Record, list[Point]]] = field(default_factory=list)
    """datasets, checkpoints, exports and evaluation results, in journal order, and the training losses of a checkpoint"""
    files: list[str] = field(default_factory=list)

    def add(self, record: Record, losses: Mapping[str, Point]) -> None:
        """`losses`: the newest point of each training loss."""
        match record["kind"]:
            case "metric":
                self.points += points_of(record)
                if record.get(LATEST):
                    self.objects.append((record, []))
            case "param":
                self.params.append(record["values"])  # record by record: the first value of a param must win
            case "tag":
                self.tags |= record["values"]
            case "artifact" if record["path"] not in self.files:
                self.files.append(record["path"])
            case "dataset" | "checkpoint" | "export":
                self.objects.append((record, list(losses.values())))

    def lasting_objects(self) -> list[tuple[Record, list[Point]]]:
        """The objects without checkpoints that the same batch removes again: the server need not hear of them."""
        removed_at = {record["path"]: at for at, (record, _) in enumerate(self.objects) if record.get("kept") is False}
        return [item for at, item in enumerate(self.objects) if not (item[0].get("kept") and removed_at.get(item[0]["path"], -1) > at)]


def points_of(record: Record, prefix: str = "") -> list[Point]:
    """The points of a metric record."""
    return [(prefix + name, float(value), record["time_ms"], record["step"]) for name, value in record["values"].items()]


class Sender:
    """Sends one run folder to one MLflow run. Methods raise the client's exceptions; call them again to continue."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.journal = run_dir, run_dir / JOURNAL
        self.state: dict[str, Any] = read_json(run_dir / STATE)
        self.sent = 0
        self.last_status: Record | None = None
        self.last_ms = now_ms()
        self._run: MlflowRun | None = None
        self._models: MlflowModels | None = None
        self.give_up_at = float("inf")
        """monotonic time from which a batch of many objects is left to the next sync"""
        self._losses: dict[str, Point] = {}
        self._datasets: dict[str, str] = {}
        self._exports: dict[int, str] = {}
        """step -> registered model"""

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
                self.state |= {"run_key": uuid.uuid4().hex, "offset": 0, "samples": {}}
        if run is None:
            first = next(records_from(self.journal, 0), None)
            start_ms = first[0]["time_ms"] if first else now_ms()
            run = find_or_make_run(uri, self.state["experiment"], self.state["run_key"], self.run_dir.resolve().name, start_ms)
            self._save_state({"run_id": run.id})
        if running:
            run.reopen()
        self._restore()
        self._run, self._models = run, MlflowModels(run, self.run_dir)

    def _restore(self) -> None:
        """Restore what later records refer to from the records that were sent before: the latest status, datasets, losses, exports."""
        self.last_status = None
        if self.journal.exists() and self.state["offset"] > self.journal.stat().st_size:
            say(f"mlflow: {self.journal} is shorter than before; sending it from the beginning")
            self.state["offset"] = 0
        for record, end in records_from(self.journal, 0):
            if end > self.state["offset"]:
                break
            self._note(record)

    def _note(self, record: Record) -> None:
        self.last_ms = record["time_ms"]
        match record["kind"]:
            case "status":
                self.last_status = record
            case "dataset":
                self._datasets |= {record["name"]: record["digest"][:DIGEST_LIMIT]}
            case "export":
                self._exports[record["step"]] = record["model"]
            case "metric" if not record.get(LATEST):
                self._losses |= {point[0]: point for point in points_of(record) if point[0].startswith("train/loss")}

    def drain(self, deadline: float = float("inf")) -> bool:
        """Send all new records, saving the offset after each batch; False if `deadline` (monotonic clock) came first."""
        while self._next_batch():
            if time.monotonic() > deadline:
                return False
        self._send_samples()
        self._send_artifacts()
        return True

    def _next_batch(self) -> bool:
        """Send about 1,000 points; False if there was nothing new. The journal has each (metric, step) once, so no point is sent twice."""
        offset, batch = self.state["offset"], _Batch(files=list(self.state["artifacts"]))
        for record, offset in records_from(self.journal, offset):
            self._note(record)
            batch.add(record, self._losses)
            if len(batch.points) >= BATCH_METRICS:
                break
        if offset == self.state["offset"]:
            return False
        for values in batch.params:
            self.run.send_params(values)
        self.run.send_tags(batch.tags)
        self.run.send_metrics(batch.points)
        for record, losses in batch.lasting_objects():
            self._send_object(record, losses)
            if time.monotonic() > self.give_up_at:
                raise TimeoutError("the server is too slow to finish now")
        self.sent += len(batch.points)
        self._save_state({"offset": offset, "artifacts": batch.files})
        return True

    def _send_object(self, record: Record, losses: list[Point]) -> None:
        assert self._models is not None, "attach first"
        match record["kind"]:
            case "dataset":
                self._models.log_dataset(record)
            case "checkpoint" if record["kept"]:
                only = next(iter(self._datasets.items())) if len(self._datasets) == 1 else None
                self._models.log_checkpoint(record, losses, only)
            case "checkpoint":
                self._models.remove_checkpoint(record["step"], exported=record["step"] in self._exports)
            case "export":
                self._models.register(record)
            case "metric":
                name, digest = record.get("dataset", ("", ""))
                self._models.link_results(record["step"], points_of(record), (name, digest[:DIGEST_LIMIT]) if name else None)
                if MEAN_SCORE in record["values"] and (model := self._exports.get(record["step"])):
                    self._models.rank(model, record["step"], float(record["values"][MEAN_SCORE]))

    def _send_samples(self) -> None:
        """Send the system metrics of all nodes."""
        offsets = dict(self.state.get("samples", {}))
        for node, path in sample_files(self.run_dir):
            points: list[Point] = []
            for record, offsets[node] in records_from(path, offsets.get(node, 0)):
                points += points_of(record, f"system/{node}/")
            self.run.send_metrics(points)
        if offsets != self.state.get("samples", {}):
            self._save_state({"samples": offsets})

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


def bytes_behind(run_dir: Path) -> int:
    """Bytes of the journal that MLflow does not have yet."""
    journal, state = run_dir / JOURNAL, run_dir / STATE
    written = journal.stat().st_size if journal.exists() else 0
    return max(0, written - int(read_json(state)["offset"] if state.exists() else 0))


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
        write_json(path, {**target, "offset": 0, "artifacts": [], "samples": {}})


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
            except OSError as error:  # two senders would only send the same twice, and MLflow keeps it once
                if error.errno not in _NO_LOCKS:
                    raise
                break
        yield True
