"""Sends a journal to a real MLflow store: everything arrives once, with its own time, and the status is right."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkd.core.config import build
from speechkd.core.errors import InputError
from speechkd.core.files import read_json, write_json
from speechkd.tracking import TrackingConfig
from speechkd.tracking.journal import JOURNAL, Journal, read_journal
from speechkd.tracking.mlflow_sender import STATE, Sender, sync
from tests.tracking.store import Store, only_run, wanted


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


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_status_is_what_the_journal_says(run: Path, store: Store, status: str) -> None:
    journal = Journal(run / JOURNAL)
    journal.status("RUNNING")
    sync(run, store.uri, "tests")
    assert only_run(store, run)[1] == "RUNNING"  # this process lives
    journal.status(status)
    sync(run)
    assert only_run(store, run)[1] == status


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
    sender.run.client.delete_run(sender.run.id)
    sync(run)
    old, new = store.runs(run.name)
    assert store.points(new[0]) == wanted(run) and old[0] != new[0]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks_does_not_stop_the_sender(run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    Journal(run / JOURNAL).metrics(1, {"a": 1.0})
    assert sync(run, store.uri, "tests") == 1


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
