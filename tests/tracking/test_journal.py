"""The journal loses at most the torn line, never stores a point twice, and never hides a number that is not finite."""

from __future__ import annotations

import json
import math
import os
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkd.tracking.journal import HEARTBEAT_S, Journal, last_status, metric_series, now_ms, read_journal, records_from
from speechkd.tracking.redact import flat_texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.jsonl"


def test_points_come_back(path: Path) -> None:
    journal = Journal(path)
    journal.metrics(1, {"train/loss": 2.5, "train/lr": 1e-3})
    journal.metrics(2, {"train/loss": 2.25})
    assert metric_series(path) == {"train/loss": [(1, 2.5), (2, 2.25)], "train/lr": [(1, 1e-3)]}


def test_a_resumed_run_that_repeats_steps_keeps_the_first_write(path: Path) -> None:
    first = Journal(path)
    for step in range(1, 8):
        first.metrics(step, {"train/loss": float(step)})
    resumed = Journal(path)
    for step in range(5, 11):
        resumed.metrics(step, {"train/loss": -1.0, "train/new": 0.0})
    assert metric_series(path)["train/loss"] == [*((step, float(step)) for step in range(1, 8)), (8, -1.0), (9, -1.0), (10, -1.0)]
    assert [step for step, _ in metric_series(path)["train/new"]] == list(range(5, 11))
    assert sum(record["step"] == 6 and "train/loss" in record["values"] for record in read_journal(path) if record["kind"] == "metric") == 1


def test_a_point_behind_the_newest_is_still_written_once(path: Path) -> None:
    journal = Journal(path)
    for step, value in ((400, 0.9), (200, 0.5), (200, 0.6), (300, 0.7)):
        journal.metrics(step, {"eval/x": value})
    assert metric_series(path) == {"eval/x": [(200, 0.5), (300, 0.7), (400, 0.9)]}


def test_of_results_the_last_counts(path: Path) -> None:
    Journal(path).results(200, {"eval/x": 0.5, "eval/y": 0.1})
    again = Journal(path)
    again.results(200, {"eval/x": 0.5, "eval/y": 0.1})
    assert len(list(read_journal(path))) == 1
    again.results(200, {"eval/x": 0.7, "eval/y": 0.1})
    again.results(200, {"eval/x": 0.5})
    assert metric_series(path) == {"eval/x": [(200, 0.5)], "eval/y": [(200, 0.1)]}
    assert [record["values"] for record in read_journal(path)][1:] == [{"eval/x": 0.7}, {"eval/x": 0.5}]


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_torn_last_line_costs_one_record_at_most(path: Path, keep: int) -> None:
    journal = Journal(path)
    journal.metrics(1, {"train/loss": 1.0})
    whole = path.read_bytes()
    journal.metrics(2, {"train/loss": 2.0})
    last = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + last[:keep])  # -1: all but the line's end, so the record itself is whole
    assert [step for step, _ in metric_series(path)["train/loss"]] == ([1, 2] if keep == -1 else [1])
    resumed = Journal(path)
    resumed.metrics(2, {"train/loss": 20.0})
    resumed.metrics(3, {"train/loss": 3.0})
    assert metric_series(path)["train/loss"] == [(1, 1.0), (2, 2.0 if keep == -1 else 20.0), (3, 3.0)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 200)), min_size=1, max_size=6))
def test_any_sequence_of_kills_leaves_each_step_once(tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.mktemp("kills") / "journal.jsonl"
    step = 0
    for steps, cut in kills:
        journal = Journal(path)
        for _ in range(steps):
            step += 1
            journal.metrics(step, {"loss": float(step)})
        journal.close()
        data = path.read_bytes()
        path.write_bytes(data[: max(len(data) - cut, 0)])
        done = [found for found, _ in metric_series(path).get("loss", [])]
        step = max(done, default=0)
    final = Journal(path)
    for again in range(1, step + 3):
        final.metrics(again, {"loss": float(again)})
    assert metric_series(path)["loss"] == [(number, float(number)) for number in range(1, step + 3)]
    lines = [record for record in read_journal(path)]
    assert len(lines) == step + 2


def test_values_that_are_not_finite_are_kept_as_valid_json(path: Path) -> None:
    Journal(path).metrics(1, {"nan": math.nan, "up": math.inf, "down": -math.inf})
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"not JSON: {text}"))
    series = metric_series(path)
    assert math.isnan(series["nan"][0][1]) and series["up"] == [(1, math.inf)] and series["down"] == [(1, -math.inf)]


def test_garbage_lines_are_skipped(path: Path) -> None:
    Journal(path).metrics(1, {"a": 1.0})
    with path.open("ab") as stream:
        stream.write(b'\xff\xfe\n[1]\n{"kind":"metric","time_ms":1,"step":"x","values":{}}\n')
        stream.write(b'{"kind":"metric","time_ms":1,"step":2,"values":{"a":"b"}}\n\n')
        stream.write(b"[" * 100_000 + b"\n")
    Journal(path).metrics(3, {"a": 3.0})
    assert metric_series(path) == {"a": [(1, 1.0), (3, 3.0)]}


def test_offsets_continue_where_reading_stopped(path: Path) -> None:
    journal = Journal(path)
    for step in range(5):
        journal.metrics(step, {"a": 1.0})
    ends = [end for _, end in records_from(path, 0)]
    assert ends[-1] == path.stat().st_size
    assert [record["step"] for record, _ in records_from(path, ends[2])] == [3, 4]


def test_params_are_flat_masked_and_written_once(path: Path) -> None:
    journal = Journal(path)
    teacher = {"api_key": "canary-1", "hfToken": "canary-2", "max_new_tokens": 64, "tokenizer": "x"}
    settings_ = {"teacher": teacher, "url": "https://u:canary-3@host/v1"}
    journal.params(settings_)
    Journal(path).params(settings_)
    journal.tags({"env": {"MLFLOW_TRACKING_PASSWORD": "canary-4"}})
    text = path.read_text()
    assert "canary" not in text and text.count("max_new_tokens") == 1
    assert flat_texts(settings_) == {
        "teacher.api_key": "***",
        "teacher.hfToken": "***",
        "teacher.max_new_tokens": "64",
        "teacher.tokenizer": "x",
        "url": "https://***@host/v1",
    }


def test_a_full_disk_costs_no_record_and_does_not_stop_training(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(path)
    journal.metrics(0, {"a": 0.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))  # the next line fits in part only
    times = []
    try:
        for step in (1, 2, 3):
            times.append(now_ms())
            journal.metrics(step, {"a": float(step)})
            time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert metric_series(path) == {"a": [(0, 0.0)]}
    journal.metrics(3, {"a": -1.0})
    journal.tags({"free": "again"})
    assert capsys.readouterr().err.count("cannot write") == 1
    assert metric_series(path) == {"a": [(step, float(step)) for step in range(4)]}
    written = [record["time_ms"] for record in read_journal(path) if record["kind"] == "metric"][1:]
    assert all(0 <= found - wanted < 10 for found, wanted in zip(written, times, strict=True))


def test_what_the_disk_never_took_is_counted_at_the_end(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(path)
    journal.metrics(0, {"a": 0.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        journal.metrics(1, {"a": 1.0})
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "1 records are lost" in capsys.readouterr().err


def test_checkpoints_datasets_and_exports_are_written_once(path: Path) -> None:
    for _ in range(2):  # the second is a resumed run
        journal = Journal(path)
        journal.dataset("corpus", "d" * 64, {"licence": "CC0", "splits": {"train": 10}})
        journal.checkpoint(4, "checkpoints/step-000004", "a")
        journal.export(4, Path("/out"), "e", "recipe", {})
    journal.checkpoint(8, "checkpoints/step-000008", "b")
    journal.checkpoint_removed("checkpoints/step-000004")
    journal.checkpoint_removed("checkpoints/step-000004")
    assert Journal(path).checkpoints == journal.checkpoints == ["checkpoints/step-000008"]
    kinds = [record["kind"] for record in read_journal(path)]
    assert kinds == ["dataset", "checkpoint", "export", "checkpoint", "checkpoint"]
    dataset = next(read_journal(path))
    assert dataset["facts"] == {"licence": "CC0", "splits.train": "10"}


def test_a_checkpoint_that_is_saved_again_is_another_one(path: Path) -> None:
    journal = Journal(path)
    journal.checkpoint(4, "checkpoints/step-000004", "a")
    journal.checkpoint(4, "checkpoints/step-000004", "b")
    assert [(record["kept"], record["digest"]) for record in read_journal(path)] == [(True, "a"), (False, "a"), (True, "b")]


def test_a_run_of_another_node_counts_as_dead_once_nothing_moves(path: Path) -> None:
    Journal(path).status("RUNNING")
    record = {**next(read_journal(path)), "host": "far-away"}
    path.write_text(json.dumps(record) + "\n")
    (path.parent / "system").mkdir()
    (path.parent / "system" / "far-away.jsonl").touch()
    assert last_status(path) == "RUNNING"
    long_ago = time.time() - 2 * HEARTBEAT_S
    os.utime(path, (long_ago, long_ago))
    assert last_status(path) == "RUNNING"  # the node's samples still come
    os.utime(path.parent / "system" / "far-away.jsonl", (long_ago, long_ago))
    assert last_status(path) == "FAILED"


def test_a_step_costs_less_than_a_fifth_of_a_millisecond(path: Path) -> None:
    journal, values = Journal(path), {f"train/metric_{number}": 0.5 for number in range(12)}
    costs = []
    for step in range(500):
        began = time.perf_counter()
        journal.metrics(step, values)
        costs.append(time.perf_counter() - began)
    assert sorted(costs)[250] < 0.2e-3  # the median: other work on the machine is not our cost


@pytest.mark.parametrize("bad", ["/etc/passwd", "../x", "a/../../x"])
def test_artifacts_stay_inside_the_run(path: Path, bad: str) -> None:
    with pytest.raises(AssertionError, match="inside the run folder"):
        Journal(path).artifact(bad)
