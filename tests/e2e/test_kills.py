"""`speechkd run` killed in the middle of any stage, by SIGKILL, continues when it is started again and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from speechkd.tracking.journal import JOURNAL, read_journal
from tests.e2e.conftest import kill_one_rank, losses, speechkd, start, wait_for

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def recipe(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A recipe of its own data root and run folder, so that shard and teach run too."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        data = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
        data["data"]["root"] = str(folder / "data")
        data |= {"name": "run", "runs": str(folder)}
        data["train"]["regimes"]["kd"][0]["steps"] = 12
        data["train"]["checkpoint_every"] = 4
        (folder / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        return folder / "recipe.yaml"

    return make


def _tasks(run: Path) -> dict[str, dict[str, object]]:
    """What does not hang on the last bits of a student that twelve steps have hardly trained."""
    tasks: dict[str, dict[str, object]] = json.loads((run / "summary.json").read_text(encoding="utf-8"))["tasks"]
    return {task: {name: row[name] for name in ("n", "chance", "teacher", "unseen_n")} for task, row in tasks.items()}


@pytest.fixture(scope="module")
def whole(recipe: Callable[[str], Path]) -> Path:
    """The uninterrupted run."""
    path = recipe("whole")
    done = speechkd("run", path, "--ranks", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    return path.parent / "run"


def _begun(pattern: str) -> Callable[[Path], bool]:
    return lambda folder: any(folder.glob(pattern))


POINTS: dict[str, Callable[[Path], bool]] = {
    "shard": _begun("data/tiny/v1/receipts/*.json"),
    "teach": _begun("data/tiny/v1/columns/*/receipts/*.json"),
    "train, before a checkpoint": lambda folder: 1 <= max(losses(folder / "run"), default=0),
    "train, after a checkpoint": _begun("run/checkpoints/step-000008"),
    "export": _begun("run/.export.tmp/*"),
    "eval": _begun("run/export/export.json"),
    "report": _begun("run/eval/summary.json"),
}


def test_killed_in_every_stage_it_continues_each_time(recipe: Callable[[str], Path], whole: Path) -> None:
    """One run, killed at every point in turn and started again, ends as the uninterrupted one did."""
    path = recipe("killed")
    folder = path.parent
    for point, reached in POINTS.items():
        process = start("run", path, "--ranks", 2)
        wait_for(lambda: reached(folder) or process.poll() is not None)
        assert process.poll() is None, f"{point}: it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    again = speechkd("run", path, "--ranks", 2)
    assert again.returncode == 0, again.stderr[-2000:]
    assert _tasks(folder / "run") == _tasks(whole)
    first, second = losses(whole), losses(folder / "run")
    assert sorted(second) == sorted(first) and all(abs(second[s] / first[s] - 1) < 1e-4 for s in first)


def test_a_column_made_twice_has_the_same_bytes(whole: Path, recipe: Callable[[str], Path]) -> None:
    path = recipe("again")
    shutil.copytree(whole.parent / "data", path.parent / "data")
    [column] = (path.parent / "data/tiny/v1/columns").iterdir()
    old = column.rename(path.parent / "old")
    assert speechkd("teach", path).returncode == 0
    names = sorted(tar.name for tar in old.glob("*.tar"))
    assert names and all((old / name).read_bytes() == (column / name).read_bytes() for name in names)


def test_a_second_training_is_refused_at_once_and_writes_nothing(whole: Path, recipe: Callable[[str], Path]) -> None:
    """It starts no ranks, and the first one's journal, which MLflow shows, says what happened to the first."""
    path = recipe("twice")
    shutil.copytree(whole.parent / "data", path.parent / "data")
    run = path.parent / "run"
    first = start("train", path, "--ranks", 2)
    wait_for(lambda: max(losses(run), default=0) >= 1 or first.poll() is not None)
    kill_one_rank(run, number=signal.SIGSTOP)  # it must not finish before the second one has begun
    second = speechkd("train", path, "--ranks", 2, timeout=60)
    kill_one_rank(run, number=signal.SIGCONT)
    assert second.returncode == 2, second.stderr[-2000:]
    assert f"another training is at work in `{run}` (pid {first.pid} on host " in second.stderr
    assert first.wait(timeout=200) == 0
    states = [record["status"] for record in read_journal(run / JOURNAL) if record["kind"] == "status"]
    assert states == ["RUNNING", "FINISHED"]
