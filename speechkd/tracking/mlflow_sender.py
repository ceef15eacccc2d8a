"""Forwards a run's journal to MLflow, from a process of its own: a dead or slow server never reaches training.

`python -m speechkd.tracking.mlflow_sender RUN_DIR --follow --parent PID` tails the journal; `sync(run_dir)` sends what an outage held
back. Both keep their place in `RUN_DIR/mlflow.json`, written after each batch. A batch sent twice (killed in between) is stored once,
because MLflow keys points by name, timestamp, step and value, and all four come from the journal.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import posixpath
import re
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkd.core.errors import InputError
from speechkd.core.files import read_json, write_json
from speechkd.core.log import say
from speechkd.tracking.journal import JOURNAL, Record, boot_time, now_ms, records_from, writer_lives
from speechkd.tracking.system import SystemMeter

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE = "mlflow.json"
BATCH_METRICS, BATCH_NAMED = 1000, 100  # what one log_batch call of the server takes
NAME_LIMIT, PARAM_LIMIT, TAG_LIMIT, CUT = 250, 500, 5000, "...[cut]"
POLL_S, LONGEST_PAUSE_S = 0.5, 30.0
FIRST_SAMPLE_S, SYSTEM_EVERY_S = 2.0, 15.0
REQUEST_S, GRACE_S = 8, 20.0  # one request; all tries after training ended: gone within 30 s
RUN_KEY = "speechkd.run_key"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's own word for what is no chat agent
SOURCE = {"mlflow.source.name": "speechkd", "mlflow.source.type": "LOCAL"}
MLFLOW_TAGS = {
    "git": "mlflow.source.git.commit",
    "git_dirty": "mlflow.source.git.dirty",
    "user": "mlflow.user",
    "description": "mlflow.note.content",
}
"""Our tag -> the one that MLflow's pages show as commit, creator and description"""
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # sending the same again cannot help


def start_sender(run_dir: Path, uri: str, experiment: str) -> subprocess.Popen[bytes]:
    """Start the sender for this process's run, in the background at low priority; its words go to `RUN_DIR/mlflow_sender.log`.

    A resumed run re-attaches to its MLflow run through `RUN_DIR/mlflow.json`; another uri or experiment gets a new one, from the beginning.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    _aim(run_dir, uri, experiment)
    journal = run_dir / JOURNAL
    since = journal.stat().st_size if journal.exists() else 0
    options = ["--follow", "--parent", str(os.getpid()), "--since", str(since)]
    command = [sys.executable, "-m", "speechkd.tracking.mlflow_sender", str(run_dir), *options]
    with (run_dir / "mlflow_sender.log").open("ab") as log:
        # a session of its own: Ctrl-C ends training, and the sender stays to report how it ended
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def sync(run_dir: Path, uri: str | None = None, experiment: str = "speechkd") -> int:
    """Send all that MLflow does not have yet, and the status; returns the number of metric points sent.

    Raises InputError if the run was never tracked and no `uri` is given, or if a sender is at work on it; ConnectionError if the server
    does not answer.
    """
    if uri is not None:
        _aim(run_dir, uri, experiment)
    elif not (run_dir / STATE).exists():
        raise InputError(f"`{run_dir}` was never sent to MLflow: name a tracking uri (no {STATE} in it)")
    with _only_sender(run_dir, wait_s=GRACE_S) as alone:
        if not alone:
            raise InputError(f"a sender is at work on `{run_dir}` already")
        sender = Sender(run_dir)
        try:
            sender.attach(running=False)
            sender.drain()
            sender.finish(sender.ending(writer_lives(sender.last_status)))
        except Exception as error:  # whatever the client raises, the user needs one line: nothing is lost, try again
            uri = sender.state["tracking_uri"]
            raise ConnectionError(f"MLflow at {uri} did not take the run: {_line(error)}; the journal keeps it") from error
        return sender.sent


class Sender:
    """One run on its way to one MLflow run. Methods raise what the client raises; calling them again continues where it stopped."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.journal = run_dir, run_dir / JOURNAL
        self.state: dict[str, Any] = read_json(run_dir / STATE)
        self.sent = 0
        self.last_status: Record | None = None
        self.last_ms = now_ms()
        self._client: MlflowClient | None = None
        self._params: dict[str, str] = {}
        self._system: deque[tuple[str, float, int, int]] = deque(maxlen=20_000)  # a day and more

    @property
    def attached(self) -> bool:
        """Whether `attach` succeeded."""
        return self._client is not None

    def attach(self, running: bool) -> None:
        """Find or make the MLflow run; `running` opens an ended one again."""
        from mlflow.entities import Run
        from mlflow.exceptions import MlflowException

        client = _new_client(self.state["tracking_uri"])
        run: Run | None = None
        if self.state.get("run_id"):
            try:
                run = client.get_run(self.state["run_id"])
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            if run is None or run.info.lifecycle_stage != "active":
                say(f"mlflow: run {self.state['run_id']} is gone from the server; the whole journal goes into a new one")
                self.state |= {"run_key": uuid.uuid4().hex, "offset": 0}
                run = None
        if run is None:
            run = self._find_or_create(client)
            self._save(run_id=run.info.run_id)
        self._params = dict(run.data.params)
        if running and run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        self._reread()
        self._client = client

    def _find_or_create(self, client: MlflowClient) -> Any:
        """The run with our key, if a predecessor died after making it and before noting its id; otherwise a new one."""
        name = self.state["experiment"]
        found = client.get_experiment_by_name(name)
        experiment_id = found.experiment_id if found else client.create_experiment(name, self._artifact_place(), KIND)
        runs = client.search_runs([experiment_id], filter_string=f"tags.`{RUN_KEY}` = '{self.state['run_key']}'", max_results=1)
        if runs:
            return runs[0]
        first = next(records_from(self.journal, 0), None)
        start = first[0]["time_ms"] if first else now_ms()
        tags = {RUN_KEY: self.state["run_key"], **SOURCE}
        return client.create_run(experiment_id, start_time=start, tags=tags, run_name=self.run_dir.resolve().name)

    def _artifact_place(self) -> str | None:
        """Beside a sqlite file (MLflow's default would be the current folder); a server decides for itself."""
        uri: str = self.state["tracking_uri"]
        if not uri.startswith("sqlite:///"):
            return None
        folder = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / _name(self.state["experiment"])
        return folder.as_uri()

    def _reread(self) -> None:
        """Learn the latest status from what was sent before."""
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
        if record["kind"] == "status":
            self.last_status = record

    def drain(self, deadline: float = float("inf")) -> bool:
        """Send what the journal holds behind our place, noting the place after each batch; False if `deadline` (monotonic) came first."""
        while self._next_batch():
            if time.monotonic() > deadline:
                return False
        self._send_metrics(list(self._system))
        self._system.clear()
        self._send_artifacts()
        return True

    def _next_batch(self) -> bool:
        """Send about 1,000 points; False if there was nothing new. The journal holds each (metric, step) once, so nothing is doubled."""
        offset, files = self.state["offset"], list(self.state["artifacts"])
        points: list[tuple[str, float, int, int]] = []
        params: list[Mapping[str, str]] = []
        tags: dict[str, str] = {}
        for record, offset in records_from(self.journal, offset):
            self._note(record)
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
            self._send_params(values)
        self._send_tags(tags)
        self._send_metrics(points)
        self.sent += len(points)
        self._save(offset=offset, artifacts=files)
        return True

    def _send_params(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = {_name(name): _cut(value, PARAM_LIMIT) for name, value in values.items()}
        changed = sorted(name for name, value in params.items() if self._params.get(name, value) != value)
        if changed:  # MLflow's params are fixed once written; the journal has both values
            say(f"mlflow: {len(changed)} params differ from the run's first start and keep their first value: {', '.join(changed[:8])}")
        new = {name: value for name, value in params.items() if name not in self._params}
        for part in _parts(list(new.items()), BATCH_NAMED):
            self._log_batch(params=[Param(*item) for item in part])
        self._params |= new

    def _send_tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        known = {MLFLOW_TAGS[name]: value for name, value in values.items() if name in MLFLOW_TAGS}
        for part in _parts([*values.items(), *known.items()], BATCH_NAMED):
            self._log_batch(tags=[RunTag(_name(name), _cut(value, TAG_LIMIT)) for name, value in part])

    def _send_metrics(self, points: Sequence[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for part in _parts(points, BATCH_METRICS):
            self._log_batch(metrics=[Metric(_name(name), value, time_ms, step) for name, value, time_ms, step in part])

    def _log_batch(self, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        from mlflow.exceptions import MlflowException

        assert self._client is not None, "attach first"
        try:
            self._client.log_batch(self.state["run_id"], metrics=metrics, params=params, tags=tags)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            what = f"{len(metrics)} metrics, {len(params)} params, {len(tags)} tags"
            say(f"mlflow: the server refuses {what}; they stay in the journal: {_line(error)}")

    def _send_artifacts(self) -> None:
        """Upload what waits. A store that takes no files must not hold the metrics up: it is said, and tried again at the next sync."""
        waiting, home = list(self.state["artifacts"]), self.run_dir.resolve()
        if not waiting:
            return
        assert self._client is not None, "attach first"
        left: list[str] = []
        for relative in waiting:
            path = (home / relative).resolve()
            if not path.is_file() or not path.is_relative_to(home):
                say(f"mlflow: artifact `{relative}` is not a file of the run folder")
                continue
            folder = Path(relative).parent.as_posix()
            try:
                self._client.log_artifact(self.state["run_id"], str(path), None if folder == "." else folder)
            except Exception as error:  # any store, any client library behind it
                say(f"mlflow: artifact `{relative}` waits for the next sync: {_line(error)}")
                left.append(relative)
        self._save(artifacts=left)

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
        assert self._client is not None, "attach first"
        if status == "RUNNING":
            self._client.update_run(self.state["run_id"], status="RUNNING")
        else:
            self._client.set_terminated(self.state["run_id"], status=status, end_time=self.last_ms)

    def _save(self, **changes: Any) -> None:
        self.state |= changes
        write_json(self.run_dir / STATE, self.state)


def follow(run_dir: Path, parent: int, since: int) -> None:
    """Tail the journal until process `parent` is gone or a final status stands behind byte `since`; then send the rest, 20 s at most."""
    born = boot_time(parent)
    with _only_sender(run_dir, wait_s=float("inf")):  # a predecessor may still be sending the end of the interrupted run
        sender, watch = Sender(run_dir), _StatusWatch(run_dir / JOURNAL, since)
        meter, samples = SystemMeter(parent), 0
        pause, next_try, next_sample = POLL_S, 0.0, time.monotonic() + FIRST_SAMPLE_S
        deadline, down = float("inf"), False
        while True:
            lives = born is not None and boot_time(parent) == born
            if (watch.final() or not lives) and deadline == float("inf"):
                deadline, next_try = time.monotonic() + GRACE_S, 0.0
            if lives and time.monotonic() >= next_sample:
                samples, next_sample = samples + 1, time.monotonic() + SYSTEM_EVERY_S
                sender.note_system(meter.sample(), samples)
            if time.monotonic() >= next_try:
                try:
                    if not sender.attached:
                        sender.attach(running=lives)
                    done = sender.drain(max(deadline, time.monotonic() + 5))
                    if done and deadline < float("inf"):
                        sender.finish(sender.ending(lives))
                        return
                    pause, down = POLL_S, False
                except Exception as error:  # whatever server, network or client raise: the journal is safe, so wait and try again
                    if not down:
                        say(f"mlflow: cannot send now, will keep trying: {_line(error)}")
                    pause, down = min(2 * pause, LONGEST_PAUSE_S if lives else 4.0), True
                next_try = time.monotonic() + pause
            if time.monotonic() > deadline:
                say(f"mlflow: not all could be sent; `speechkd sync {run_dir}` sends the rest")
                return
            time.sleep(POLL_S)


class _StatusWatch:
    """Whether the journal's latest status behind byte `since` is a final one; reads each byte once, and needs no server."""

    def __init__(self, journal: Path, since: int) -> None:
        self._journal, self._offset, self._final = journal, since, False

    def final(self) -> bool:
        for record, self._offset in records_from(self._journal, self._offset):
            if record["kind"] == "status":
                self._final = record["status"] != "RUNNING"
        return self._final


def _aim(run_dir: Path, uri: str, experiment: str) -> None:
    """Write `mlflow.json` unless it already points there."""
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
def _only_sender(run_dir: Path, wait_s: float) -> Iterator[bool]:
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


def _new_client(uri: str) -> MlflowClient:
    """The client, with its own retries off: by default a call to a dead server blocks for four minutes, to a silent one for twenty."""
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_S),
        "GIT_PYTHON_REFRESH": "quiet",
    }
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _name(name: str) -> str:
    """A name that MLflow takes: its letters, no empty or parent path parts, 250 characters."""
    clean = posixpath.normpath("/" + re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)).strip("/")
    return clean[:NAME_LIMIT].rstrip("/") or "_"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def main() -> None:
    """Entry point of the sender process."""
    parser = argparse.ArgumentParser(prog="python -m speechkd.tracking.mlflow_sender", description="forward a run's journal to MLflow")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--follow", action="store_true", help="tail the journal while --parent lives; otherwise send what there is")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process id of the training")
    parser.add_argument("--since", type=int, default=0, help="a final status before this byte belongs to an earlier start")
    args = parser.parse_args()
    os.nice(10)  # training comes first
    if args.follow:
        follow(args.run_dir, args.parent, args.since)
    else:
        say(f"mlflow: sent {sync(args.run_dir)} points")


if __name__ == "__main__":
    main()
