"""Datasets, checkpoints and exports are MLflow's own objects, once each, whatever is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd.core.files import read_json, write_json
from speechkd.tracking.journal import JOURNAL, Journal
from speechkd.tracking.mlflow_sender import STATE, Sender, sync
from speechkd.tracking.records import MEAN_SCORE
from tests.tracking.store import Store, only_run

DIGEST = "d" * 64


def trained(run: Path, scores: dict[int, float], model: str) -> Path:
    """A run with a checkpoint at each step of `scores`, all exported and evaluated; the first checkpoint is removed."""
    journal = Journal(run / JOURNAL)
    journal.status("RUNNING")
    journal.dataset("minibabel", DIGEST, {"version": "v1", "licence": "CC0-1.0", "shards": "/shards", "splits": {"train": 90, "test": 10}})
    journal.metrics(1, {"train/loss": 3.0, "train/lr": 1.0})
    journal.checkpoint(1, "checkpoints/step-000001", "0")
    for step, score in scores.items():
        journal.metrics(step, {"train/loss": 1.0 / step, "train/loss_kd": 0.5 / step})
        journal.checkpoint(step, f"checkpoints/step-{step:06d}", f"weights-{step}")
        journal.export(step, Path("/out") / f"{run.name}-{step}", f"{run.name}-{step}", model, {"merged": False})
        journal.results(step, {"eval/language/student": score}, ("minibabel", DIGEST))
        journal.results(step, {MEAN_SCORE: score})
    journal.checkpoint_removed("checkpoints/step-000001")
    journal.status("FINISHED")
    return run


def test_a_run_has_its_datasets_checkpoints_and_versions_once(run: Path, store: Store) -> None:
    model = f"kd-{run.name}"
    trained(run, {4: 0.5, 8: 0.75}, model)
    for again in ("first", "killed after sending", "without the run's id"):
        sync(run, store.uri, "models")
        run_id = only_run(store, run)[0]
        sender = Sender(run)
        sender.attach(running=False)
        client = sender.run.client
        found = client.get_run(run_id)

        (dataset,) = found.inputs.dataset_inputs
        assert (dataset.dataset.name, dataset.dataset.digest) == ("minibabel", DIGEST[:36]), again
        tags = {tag.key: tag.value for tag in dataset.tags}
        assert (tags["licence"], tags["splits.test"], tags["sha256"]) == ("CC0-1.0", "10", DIGEST)

        models = client.search_logged_models([sender.run.experiment_id], f"source_run_id = '{run_id}'")
        assert sorted(m.name for m in models) == ["step-000004", "step-000008"], again
        assert {m.model_id for m in models} == {m.model_id for m in found.outputs.model_outputs} and len(found.outputs.model_outputs) == 2
        last = max(models, key=lambda m: m.name)
        assert last.params == {"step": "8", "path": str(run / "checkpoints/step-000008"), "sha256": "weights-8"}
        assert str(last.status) == "READY"
        measured = {m.key: (m.value, m.dataset_name) for m in last.metrics}
        expected = {"train/loss": 0.125, "train/loss_kd": 0.0625, "eval/language/student": 0.75}
        assert measured == {name: (value, "minibabel") for name, value in expected.items()} | {MEAN_SCORE: (0.75, None)}

        versions = client.search_model_versions(f"name = '{model}'")
        assert sorted((v.tags["checkpoint_step"], v.run_id) for v in versions) == [("4", run_id), ("8", run_id)], again
        assert client.get_model_version_by_alias(model, "best").tags["checkpoint_step"] == "8"
        state = read_json(run / STATE)
        write_json(run / STATE, {**state, "offset": 0} | ({"run_id": None} if again == "killed after sending" else {}))


def test_the_alias_follows_the_best_score_over_runs(run: Path, store: Store) -> None:
    model = f"kd-{run.name}"
    better, worse = trained(run / "better", {4: 0.9}, model), trained(run / "worse", {4: 0.4}, model)
    for folder in (better, worse):
        sync(folder, store.uri, "models")
    sender = Sender(worse)
    sender.attach(running=False)
    client = sender.run.client
    assert client.get_model_version_by_alias(model, "best").tags["held_out_score"] == "0.9"
    Journal(better / JOURNAL).results(4, {MEAN_SCORE: 0.1})  # graded again
    sync(better)
    assert client.get_model_version_by_alias(model, "best").tags["held_out_score"] == "0.4"


def test_an_exported_checkpoint_that_was_removed_keeps_its_model(run: Path, store: Store) -> None:
    trained(run, {4: 0.5}, f"kd-{run.name}")
    sync(run, store.uri, "models")
    Journal(run / JOURNAL).checkpoint_removed("checkpoints/step-000004")
    sync(run)
    sender = Sender(run)
    sender.attach(running=False)
    (kept,) = sender.run.client.search_logged_models([sender.run.experiment_id], f"source_run_id = '{sender.run.id}'")
    assert kept.tags["kept"] == "false"


def test_what_the_server_refuses_does_not_hold_up_the_metrics(run: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(run / JOURNAL)
    journal.dataset("n" * 600, DIGEST, {})
    journal.metrics(1, {"train/loss": 1.0})
    assert sync(run, store.uri, "models") == 1
    assert "refuses dataset" in capsys.readouterr().err
