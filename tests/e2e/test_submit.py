"""`speechkd submit` asks only for what is missing, and says what is wrong before anything is queued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from speechkd.cluster.profile import read_profile
from speechkd.core.errors import InputError
from speechkd.core.files import write_json
from speechkd.recipe import Recipe, load_recipe
from speechkd.stages.job_graph import JobGraph, job_graph
from speechkd.stages.progress import run_state
from speechkd.stages.status import status
from speechkd.stages.submit import submit
from tests.e2e.conftest import ROOT, STEPS


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def recipe(workshop: Path, data: Path) -> Recipe:
    return load_recipe(workshop / "recipe.yaml", [f"data.root={data}", "name=graph"])


def graph(workshop: Path, data: Path) -> JobGraph:
    return job_graph(recipe(workshop, data), read_profile("devcluster"), 2, Path("/shared/recipe.yaml"))


def tasks(found: JobGraph) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {job.name: (job.partitions, job.tasks) for job in found.jobs}


def test_nothing_is_there_so_every_shard_is_asked_for(workshop: Path, tmp_path: Path) -> None:
    """Four shards; each stage waits for the one before; nothing is written by looking."""
    found = graph(workshop, tmp_path)
    assert tasks(found) == {"shard-tiny": (4, (0, 1, 2, 3)), "teach": (4, (0, 1, 2, 3)), "train": (0, ()), "eval": (0, ())}
    assert [[other.name for other in found.after(job)] for job in found.jobs[1:]] == [["shard-tiny"], ["teach"], ["train"]]
    assert not list(tmp_path.iterdir())


def test_what_a_failed_job_left_is_all_that_is_asked_for(workshop: Path, tmp_path: Path) -> None:
    """One shard of a column lacks its receipt, then one of the corpus."""
    shutil.copytree(workshop / "data", tmp_path / "data")
    whole = graph(workshop, tmp_path / "data")
    assert [job.name for job in whole.jobs] == ["train", "eval"] and not whole.after(whole.jobs[0])
    [column] = (tmp_path / "data/tiny/v1/columns").iterdir()
    (column / "manifest.json").unlink()
    assert tasks(graph(workshop, tmp_path / "data"))["teach"] == (4, (0,))  # only to publish
    (column / "receipts" / "000002.json").unlink()
    assert tasks(graph(workshop, tmp_path / "data"))["teach"] == (4, (2,))
    (tmp_path / "data/tiny/v1/manifest.json").unlink()
    (tmp_path / "data/tiny/v1/receipts/000003.json").unlink()
    assert tasks(graph(workshop, tmp_path / "data"))["shard-tiny"] == (4, (3,))


def test_a_dry_run_prints_the_scripts_and_writes_nothing(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((workshop / "runs").glob("*")) if (workshop / "runs").is_dir() else []
    assert submit(recipe(workshop, workshop / "data"), read_profile("devcluster"), None, dry_run=True, as_json=True) == 0
    jobs = {job["name"]: job for job in json.loads(capsys.readouterr().out)["jobs"]}
    assert jobs["eval"]["after"] == ["train"] and "--nodes 2 --rendezvous" in jobs["train"]["script"]
    assert sorted((workshop / "runs").glob("*") if (workshop / "runs").is_dir() else []) == before


def test_what_a_job_would_refuse_is_refused_at_once(workshop: Path, tmp_path: Path) -> None:
    profile = read_profile("devcluster")
    mine = recipe(workshop, workshop / "data")
    with pytest.raises(InputError, match="micro_batches"):
        submit(mine, profile, 3, dry_run=True, as_json=False)
    with pytest.raises(InputError, match="is not in `/elsewhere`, which the nodes of cluster `devcluster` share"):
        submit(mine, profile.model_copy(update={"shared": "/elsewhere"}), None, dry_run=True, as_json=False)
    with pytest.raises(InputError, match="cannot stand in a batch script"):
        submit(mine.model_copy(update={"runs": f"{tmp_path}/two words"}), profile, None, dry_run=True, as_json=False)
    with pytest.raises(InputError, match="did you mean `devcluster`"):
        read_profile("devcluser")


def test_without_slurm_a_run_is_not_submitted_and_leaves_no_job(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = recipe(workshop, workshop / "data").model_copy(update={"runs": str(tmp_path)})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no `sbatch` here"):
        submit(mine, read_profile("devcluster"), None, dry_run=False, as_json=False)
    assert not (tmp_path / "graph/jobs/jobs.json").exists()


def test_the_folder_alone_tells_how_far_a_run_is(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no SLURM: shards by their receipts, training by its journal, the reason by its log."""
    monkeypatch.setenv("PATH", str(tmp_path))
    run = tmp_path / "run"
    shutil.copytree(workshop / "data", tmp_path / "data")
    root = tmp_path / "data/tiny/v1"
    (root / "manifest.json").unlink()
    (root / "receipts/000001.json").unlink()
    parts = [{"stage": "shard", "name": "tiny", "root": str(root), "shards": 4}]
    job = {"stage": "train", "name": "train", "job": 12, "command": ["sbatch"], "at": "2026-01-01"}
    (run / "jobs").mkdir(parents=True)
    (run / "jobs/recipe.yaml").write_text((workshop / "recipe.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    write_json(run / "jobs/jobs.json", {"profile": "x", "nodes": 1, "ranks": 1, "parts": parts, "jobs": [job]})
    state = run_state(run)
    assert {stage.stage: (stage.state, stage.done, stage.total) for stage in state.stages}["shard"] == ("stopped", 3, 4)
    assert not state.slurm and state.state == "not started" and state.failure is None
    lines = [{"kind": "metric", "step": n, "time_ms": 2000 * n, "values": {"train/loss": 1.0}} for n in range(1, 11)]
    lines.append({"kind": "status", "status": "FAILED", "time_ms": 1})
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run / "jobs/train-12.log").write_text("train: 10/24\nerror: the disk is full\nmore\n", encoding="utf-8")
    (run / "stacks").mkdir()
    (run / "stacks/rank-00003.txt").write_text("stacks")
    state = run_state(run)
    train = {stage.stage: stage for stage in state.stages}["train"]
    assert (train.state, train.done, train.total) == ("failed", 10, STEPS)
    assert state.failure and "the disk is full" in state.failure and state.stacks == [str(run / "stacks/rank-00003.txt")]
    write_json(run / "eval/summary.json", {"tasks": {"language": {"student": 0.75, "n": 12}}, "inputs": ""})
    lines = [{"kind": "status", "status": "RUNNING", "time_ms": 1000, "pid": 1, "host": "gone"}, *lines[:-1]]
    lines.append({"kind": "status", "status": "KILLED", "time_ms": 31_000, "reason": "stopped after a checkpoint"})
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    capsys.readouterr()
    status(run)
    shown = capsys.readouterr().out
    assert "reason      stopped after a checkpoint\n" in shown and "trained     0:00:30\n" in shown
    assert shown.endswith("task      student   n\nlanguage   75.0 %  12\n")
