"""The sender against real MLflow stores: everything arrives once, with its own time; status is the truth; training is never in the way."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechkd.core.config import build
from speechkd.core.errors import InputError
from speechkd.core.files import read_json, write_json
from speechkd.tracking import TrackingConfig
from speechkd.tracking.journal import JOURNAL, Journal, read_journal
from speechkd.tracking.mlflow_sender import STATE, Sender, sync
from tests.tracking.store import Point, Store

TRAINER = """
import sys, time
from pathlib import Path
from speechkd.tracking.journal import Journal
from speechkd.tracking.mlflow_sender import start_sender

run, uri, first, last, end = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
sender = start_sender(run, uri, "tests")
print(sender.pid, flush=True)
journal = Journal(run / "journal.jsonl")
journal.status("RUNNING")
journal.params({"lr": f"1e-{first}", "start": 0})
for step in range(first, last):
    journal.metrics(step, {"train/loss": 1.0 / (step + 1), "train/lr": 0.5})
print("trained", flush=True)
if end == "hang":
    time.sleep(600)
journal.status(end)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / f"run-{os.urandom(4).hex()}"


def wanted(run: Path) -> list[Point]:
    points = [
        (name, record["step"], float(value), record["time_ms"])
        for record in read_journal(run / JOURNAL)
        if record["kind"] == "metric"
        for name, value in record["values"].items()
    ]
    return sorted(points, key=lambda row: (row[0], row[1], row[3]))


def only_run(store: Store, run: Path) -> tuple[str, str, int, int | None]:
    found = store.runs(run.name)
    assert len(found) == 1, f"one MLflow run for one run folder, found {found}"
    return found[0]


def wait_for(pid: int, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there after {seconds} s")


def test_everything_arrives_once_with_its_own_time(run: Path, store: Store) -> None:
    journal = Journal(run / JOURNAL)
    journal.status("RUNNING")
    journal.params({"model": {"width": 128, "hf_token": "canary-1"}, "long": "x" * 2000, "odd näme!": "1"})
    journal.tags({"git": "abc", "user": "me", "description": "what it is for", "webhook_secret": "canary-2"})
    for step in range(1300):  # more than two batches of a thousand
        journal.metrics(step, {"train/loss": 1.0 / (step + 1), "train/lr": 0.5})
    journal.metrics(1300, {"train/bad": math.nan, "../up//x": 1.0, "Verlust (größer)": 2.0})
    (run / "eval").mkdir()
    (run / "eval" / "table.txt").write_text("a table")
    journal.artifact("eval/table.txt")
    journal.status("FINISHED")

    assert sync(run, store.uri, "tests") == 2603
    run_id, status, start, end = only_run(store, run)
    times = [record["time_ms"] for record in read_journal(run / JOURNAL)]
    assert (status, start, end) == ("FINISHED", times[0], times[-1])
    stored = store.points(run_id)
    plain = ("train/loss", "train/lr")
    assert [point for point in stored if point[0] in plain] == [point for point in wanted(run) if point[0] in plain]
    assert {point[0]: point[2] for point in stored if point[1] == 1300} == {"train/bad": None, "up/x": 1.0, "Verlust _gr__er_": 2.0}
    params = store.params(run_id)
    assert params["model.width"] == "128" and params["odd n_me_"] == "1" and params["model.hf_token"] == "***"
    assert len(params["long"]) == 500 and params["long"].endswith("[cut]")
    tags = store.tags(run_id)
    assert tags["git"] == tags["mlflow.source.git.commit"] == "abc" and tags["mlflow.source.name"] == "speechkd"
    assert (tags["mlflow.user"], tags["mlflow.note.content"]) == ("me", "what it is for")
    assert store.experiment_tags("tests")["mlflow.experimentKind"] == "custom_model_development"
    assert "canary" not in str([params, store.tags(run_id), read_json(run / STATE)])
    assert [path.read_text() for path in store.file.parent.rglob("table.txt")] == ["a table"]

    assert sync(run) == 0
    write_json(run / STATE, {**read_json(run / STATE), "offset": 0})  # killed after sending, before noting it
    assert sync(run) == 2603
    write_json(run / STATE, {**read_json(run / STATE), "offset": 0, "run_id": None})  # killed before noting even the run
    assert sync(run) == 2603
    assert only_run(store, run)[0] == run_id and store.points(run_id) == stored


def test_a_later_evaluation_is_what_the_page_shows(run: Path, store: Store) -> None:
    Journal(run / JOURNAL).results(7, {"eval/gender/student": 0.5})
    sync(run, store.uri, "tests")
    time.sleep(0.002)
    Journal(run / JOURNAL).results(7, {"eval/gender/student": 0.25})
    sync(run)
    assert store.latest(only_run(store, run)[0])["eval/gender/student"] == 0.25


def test_changed_params_of_a_resumed_run_are_said_and_do_not_raise(run: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(run / JOURNAL)
    journal.params({"lr": 1, "batch": 8})
    sync(run, store.uri, "tests")
    Journal(run / JOURNAL).params({"lr": 2, "batch": 8, "new": 3})
    sync(run)
    assert store.params(only_run(store, run)[0]) == {"lr": "1", "batch": "8", "new": "3"}
    assert [line for line in capsys.readouterr().err.splitlines() if "keep their first value: lr" in line]


@pytest.mark.parametrize("said", ["FINISHED", "FAILED", "KILLED"])
def test_status_is_what_the_journal_says(run: Path, store: Store, said: str) -> None:
    journal = Journal(run / JOURNAL)
    journal.status("RUNNING")
    sync(run, store.uri, "tests")
    assert only_run(store, run)[1] == "RUNNING"  # this process lives
    journal.status(said)
    sync(run)
    assert only_run(store, run)[1] == said


def test_a_dead_writer_without_a_last_word_has_failed(run: Path, store: Store) -> None:
    code = "import sys, pathlib, speechkd.tracking.journal as j; j.Journal(pathlib.Path(sys.argv[1])).status('RUNNING')"
    subprocess.run([sys.executable, "-c", code, str(run / JOURNAL)], check=True)
    sync(run, store.uri, "tests")
    assert only_run(store, run)[1] == "FAILED"


def test_a_run_deleted_on_the_server_is_sent_anew(run: Path, store: Store) -> None:
    Journal(run / JOURNAL).metrics(1, {"a": 1.0})
    sync(run, store.uri, "tests")
    sender = Sender(run)
    sender.attach(running=False)
    assert sender._client is not None
    sender._client.delete_run(sender.state["run_id"])
    sync(run)
    old, new = store.runs(run.name)
    assert store.points(new[0]) == wanted(run) and old[0] != new[0]


def test_a_dead_server_is_one_line_and_quick(run: Path) -> None:
    Journal(run / JOURNAL).metrics(1, {"a": 1.0})
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="the journal keeps it"):
        sync(run, "http://127.0.0.1:9", "tests")
    assert time.monotonic() - began < 15


def test_a_run_that_was_never_sent_says_so(run: Path) -> None:
    run.mkdir()
    with pytest.raises(InputError, match="name a tracking uri"):
        sync(run)


@pytest.mark.parametrize("uri, part", [("ftp://x", "must start with"), ("https://u:pw@host/x", "must not hold credentials")])
def test_bad_uris_are_refused(uri: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        build(TrackingConfig, {"uri": uri}, "recipe.yaml")


def test_killed_training_is_reported_and_its_resume_goes_into_the_same_run(run: Path, store: Store) -> None:
    command = [sys.executable, "-c", TRAINER, str(run), store.uri]
    first = subprocess.Popen([*command, "0", "40", "hang"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    sender = int(first.stdout.readline())
    assert first.stdout.readline() == "trained\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    with (run / JOURNAL).open("ab") as journal:
        journal.write(b'{"kind":"metric","step":40,"time_')  # the kill tore a line
    resumed = subprocess.run([*command, "30", "60", "FINISHED"], stdout=subprocess.PIPE, text=True, check=True)
    for pid in (sender, int(resumed.stdout.split()[0])):
        wait_for(pid, 60)
    run_id, status, _, _ = only_run(store, run)
    assert status == "FINISHED"
    assert [step for name, step, _, _ in store.points(run_id) if name == "train/loss"] == list(range(60))
    assert store.points(run_id) == wanted(run) and store.params(run_id) == {"lr": "1e-0", "start": "0"}
    assert "keep their first value: lr" in (run / "mlflow_sender.log").read_text()


class Server:
    """A real `mlflow server` on loopback, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = Store(folder / "server.db"), folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        from urllib.request import urlopen

        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.store.uri, "--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        limit = time.monotonic() + 180
        while True:
            try:
                with urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < limit, (self.folder / "server.log").read_text()
                time.sleep(0.3)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.system
def test_an_outage_of_the_server_loses_and_doubles_nothing(run: Path, server: Server) -> None:
    server.start()
    command = [sys.executable, "-c", TRAINER, str(run), server.uri]
    first = subprocess.Popen([*command, "0", "1500", "hang"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    sender = int(first.stdout.readline())
    assert first.stdout.readline() == "trained\n"
    limit = time.monotonic() + 60
    while read_json(run / STATE)["offset"] < (run / JOURNAL).stat().st_size:
        assert time.monotonic() < limit, (run / "mlflow_sender.log").read_text()
        time.sleep(0.2)
    run_id, status, *_ = only_run(server.store, run)
    assert status == "RUNNING"
    while "system/cpu_utilization_percentage" not in server.store.names(run_id):  # the machine is looked at a little later
        assert time.monotonic() < limit, (run / "mlflow_sender.log").read_text()
        time.sleep(0.2)
    os.kill(sender, signal.SIGKILL)  # a sender may die too
    server.kill()
    first.send_signal(signal.SIGKILL)
    first.wait()

    resumed = subprocess.run([*command, "1000", "3000", "FINISHED"], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    began = time.monotonic()
    wait_for(int(resumed.stdout.split()[0]), 40)
    assert time.monotonic() - began < 31
    log = (run / "mlflow_sender.log").read_text()
    assert log.count("cannot send now") == 1 and "speechkd sync" in log
    with pytest.raises(ConnectionError):
        sync(run)

    server.start()
    assert sync(run) == 3000
    run_id, status, start, _ = only_run(server.store, run)
    first = next(read_journal(run / JOURNAL))["time_ms"]
    assert status == "FINISHED" and abs(start - first) < 60_000  # the sender attaches before the first record
    assert server.store.points(run_id) == wanted(run) and len(wanted(run)) == 6000
    assert {"system/cpu_utilization_percentage", "system/run_memory_usage_megabytes"} <= server.store.names(run_id)


@pytest.mark.system
def test_a_server_that_accepts_and_never_answers_holds_nothing_up(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-c", TRAINER, str(run), f"http://127.0.0.1:{silent.getsockname()[1]}", "0", "100", "FINISHED"]
        began = time.monotonic()
        trainer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        assert time.monotonic() - began < 25  # it is the import of torch that takes seconds
        began = time.monotonic()
        wait_for(int(trainer.stdout.split()[0]), 31)
    assert "speechkd sync" in (run / "mlflow_sender.log").read_text()


@pytest.mark.system
def test_a_server_that_comes_back_gets_everything_while_training_goes_on(run: Path, server: Server) -> None:
    command = [sys.executable, "-c", TRAINER, str(run), server.uri]
    trainer = subprocess.Popen([*command, "0", "500", "hang"], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    sender = int(trainer.stdout.readline())
    assert trainer.stdout.readline() == "trained\n"
    time.sleep(5)  # the sender finds nobody
    server.start()
    limit = time.monotonic() + 90
    while read_json(run / STATE)["offset"] < (run / JOURNAL).stat().st_size:
        assert time.monotonic() < limit, (run / "mlflow_sender.log").read_text()
        time.sleep(0.2)
    trainer.terminate()
    trainer.wait()
    wait_for(sender, 30)
    run_id, status, _, _ = only_run(server.store, run)
    assert status == "FAILED" and server.store.points(run_id) == wanted(run)  # it died without a last word
    assert json.loads((run / STATE).read_text())["run_id"] == run_id
