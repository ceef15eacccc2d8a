"""A run's journal on its way to MLflow: in batches, each noted in `RUN_DIR/mlflow.json` once sent, so that any later sender goes on there.

A batch sent twice (killed in between) is stored once, because MLflow keys points by name, timestamp, step and value, and all four come from
the journal. `sync(run_dir)` sends what an outage held back; `mlflow_process` sends while training goes on.
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
from speechkd.tracking.journal import JOURNAL, Record, now_ms, records_from, writer_lives
from speechkd.tracking.mlflow_client import BATCH_METRICS, MlflowRun, Point, existing_run, find_or_make_run, one_line

STATE = "mlflow.json"
POLL_S = 0.5
GRACE_S = 20.0
"""How long all tries may take after training ended: the sender is gone within 30 s"""


def sync(run_dir: Path, uri: str | None = None, experiment: str = "speechkd") -> int:
    """Send all that MLflow does not have yet, and the status; returns the number of metric points sent.

    Raises InputError if the run was never tracked and no `uri` is given, or if a sender is at work on it; ConnectionError if the server
    does not answer.
    """
    if uri is not None:
        aim(run_dir, uri, experiment)
    elif not (run_dir / STATE).exists():
        raise InputError(f"`{run_dir}` was never sent to MLflow: name a tracking uri (no {STATE} in it)")
    with only_sender(run_dir, wait_s=GRACE_S) as alone:
        if not alone:
            raise InputError(f"a sender is at work on `{run_dir}` already")
        sender = Sender(run_dir)
        try:
            sender.attach(running=False)
            sender.drain()
            sender.finish(sender.ending(writer_lives(sender.last_status)))
        except Exception as error:  # whatever the client raises, the user needs one line: nothing is lost, try again
            uri = sender.state["tracking_uri"]
            raise ConnectionError(f"MLflow at {uri} did not take the run: {one_line(error)}; the journal keeps it") from error
        return sender.sent


class Sender:
    """One run on its way to one MLflow run. Methods raise what the client raises; calling them again continues where it stopped."""

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
        """Find or make the MLflow run; `running` opens an ended one again."""
        run: MlflowRun | None = None
        uri, known = self.state["tracking_uri"], self.state.get("run_id")
        if known:
            run = existing_run(uri, known)
            if run is None:
                say(f"mlflow: run {known} is gone from the server; the whole journal goes into a new one")
                self.state |= {"run_key": uuid.uuid4().hex, "offset": 0}
        if run is None:
            first = next(records_from(self.journal, 0), None)
            start_ms = first[0]["time_ms"] if first else now_ms()
            run = find_or_make_run(uri, self.state["experiment"], self.state["run_key"], self.run_dir.resolve().name, start_ms)
            self._note({"run_id": run.id})
        if running:
            run.reopen()
        self._reread()
        self._run = run

    def _reread(self) -> None:
        """Learn the latest status from what was sent before."""
        self.last_status = None
        if self.journal.exists() and self.state["offset"] > self.journal.stat().st_size:
            say(f"mlflow: {self.journal} is shorter than before; sending it from the beginning")
            self.state["offset"] = 0
        for record, end in records_from(self.journal, 0):
            if end > self.state["offset"]:
                break
            self._learn(record)

    def _learn(self, record: Record) -> None:
        self.last_ms = record["time_ms"]
        if record["kind"] == "status":
            self.last_status = record

    def drain(self, deadline: float = float("inf")) -> bool:
        """Send what the journal holds behind our place, noting the place after each batch; False if `deadline` (monotonic) came first."""
        while self._next_batch():
            if time.monotonic() > deadline:
                return False
        self.run.send_metrics(list(self._system))
        self._system.clear()
        self._send_artifacts()
        return True

    def _next_batch(self) -> bool:
        """Send about 1,000 points; False if there was nothing new. The journal holds each (metric, step) once, so nothing is doubled."""
        offset, files = self.state["offset"], list(self.state["artifacts"])
        points: list[Point] = []
        params: list[Mapping[str, str]] = []
        tags: dict[str, str] = {}
        for record, offset in records_from(self.journal, offset):
            self._learn(record)
            match record["kind"]:
                case "metric":
                    points += [(name, float(value), record["time_ms"], record["step"]) for name, value in record["values"].items()]
                case "param":
                    params.append(record["values"])  # one by one: of a name that is written twice the first value stays
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
        self._note({"offset": offset, "artifacts": files})
        return True

    def _send_artifacts(self) -> None:
        """Upload what waits. A store that takes no files must not hold the metrics up: it is said, and tried again at the next sync."""
        waiting, home = list(self.state["artifacts"]), self.run_dir.resolve()
        if not waiting:
            return
        left: list[str] = []
        for relative in waiting:
            path = (home / relative).resolve()
            if not path.is_file() or not path.is_relative_to(home):
                say(f"mlflow: artifact `{relative}` is not a file of the run folder")
                continue
            folder = Path(relative).parent.as_posix()
            try:
                self.run.send_file(path, None if folder == "." else folder)
            except Exception as error:  # any store, any client library behind it
                say(f"mlflow: artifact `{relative}` waits for the next sync: {one_line(error)}")
                left.append(relative)
        self._note({"artifacts": left})

    def note_system(self, values: Mapping[str, float], number: int) -> None:
        """Keep sample `number` of the machine, to be sent with the next batch."""
        now = now_ms()
        self._system.extend((f"system/{name}", value, now, number) for name, value in values.items())

    def ending(self, writer_lives: bool) -> str:
        """What the run's status truthfully is: as the journal says, but a RUNNING whose process is gone has FAILED."""
        status: str = self.last_status["status"] if self.last_status else "RUNNING"
        return "FAILED" if status == "RUNNING" and not writer_lives else status

    def finish(self, status: str) -> None:
        """Set the run's status, with the time of the last record as its end."""
        self.run.end(status, self.last_ms)

    def _note(self, changes: Mapping[str, Any]) -> None:
        """Write down how far we are."""
        self.state |= changes
        write_json(self.run_dir / STATE, self.state)


def aim(run_dir: Path, uri: str, experiment: str) -> None:
    """Write `mlflow.json` unless it already points there; another uri or experiment gets the run from the beginning."""
    if uri.startswith("sqlite:///"):  # a relative file would mean another one from another folder
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
def only_sender(run_dir: Path, wait_s: float) -> Iterator[bool]:
    """Hold the run's sender lock; yields False if another process still holds it after `wait_s`. The system frees it when a holder dies."""
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
