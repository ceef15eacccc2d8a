"""`speechkd train` gives one curve on any number of ranks, through kills and resizes, and never starts over silently."""

from __future__ import annotations

import contextlib
import shutil
import signal
from pathlib import Path

import pytest

from speechkd.core.errors import EXIT_INPUT, EXIT_REQUEUE
from speechkd.core.files import read_json_lines
from speechkd.recipe import load_recipe
from speechkd.tracking.journal import JOURNAL, read_journal
from tests.e2e.conftest import ROOT, ended, kill_one_rank, losses, speechkd, start, start_on_nodes, wait_for
from tests.e2e.several import train_several


def _train(workshop: Path, name: str, ranks: int, *more: object) -> dict[int, float]:
    done = speechkd("train", workshop / "recipe.yaml", "--set", f"name={name}", "--ranks", ranks, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    return losses(workshop / "runs" / name)


@pytest.fixture(scope="module")
def curve(workshop: Path) -> dict[int, float]:
    """The uninterrupted curve on two ranks."""
    found = _train(workshop, "two", 2)
    assert sorted(found) == list(range(1, 51)) and found[50] < found[1]
    return found


def test_two_nodes_of_one_rank_give_the_curve_of_one_node_with_two(workshop: Path, curve: dict[int, float]) -> None:
    """fp32: relative difference at most 1e-6 at every step, in one journal that says how the run was started."""
    run = workshop / "runs" / "nodes"
    (first, said), (second, also) = ended(start_on_nodes(2, workshop / "recipe.yaml", "--set", "name=nodes"))
    assert (first, second) == (0, 0), said[-2000:] + also[-2000:]
    other = losses(run)
    assert sorted(other) == sorted(curve) and all(abs(other[step] / curve[step] - 1) <= 1e-6 for step in curve)
    tags = {name: value for record in read_journal(run / JOURNAL) if record["kind"] == "tag" for name, value in record["values"].items()}
    assert (tags["nodes"], tags["ranks"]) == ("2", "2")
    events = read_json_lines(run / "restarts.jsonl")
    assert [(event["event"], event["step"], event.get("code")) for event in events] == [("start", 0, None), ("end", 50, 0)]


@pytest.fixture(scope="module")
def killed(workshop: Path) -> Path:
    """A two-rank run of which one rank was killed after the checkpoint at step 20."""
    run = workshop / "runs" / "killed"
    process = start("train", workshop / "recipe.yaml", "--set", "name=killed", "--ranks", 2)
    wait_for(lambda: max(losses(run), default=0) >= 24)
    kill_one_rank(run, rank=1)
    assert process.wait(60) == 1
    assert [folder.name for folder in sorted((run / "checkpoints").glob("step-*"))] == ["step-000020"]
    return run


def _resumable(workshop: Path, killed: Path, ranks: int) -> Path:
    """A copy of the killed run. A torn checkpoint stands beside the good one, with a pickle in it that must never be opened."""
    run = workshop / "runs" / f"resumed{ranks}"
    shutil.copytree(killed, run)
    torn = run / "checkpoints" / "step-000030"
    shutil.copytree(run / "checkpoints" / "step-000020", torn)
    (torn / "COMMIT.json").unlink()
    (torn / "moments.pkl").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(workshop / f"opened{ranks}").encode())
    return run


@pytest.fixture(scope="module", params=[1, 4])
def on_other_ranks(request: pytest.FixtureRequest, workshop: Path, killed: Path) -> int:
    """A number of ranks on which the recipe was trained from its start, and the killed run to its end, in one launch."""
    ranks = int(request.param)
    _resumable(workshop, killed, ranks)
    with contextlib.chdir(ROOT):
        recipes = [load_recipe(workshop / "recipe.yaml", [f"name={name}{ranks}"]) for name in ("ranks", "resumed")]
        train_several(recipes, ranks, resume="auto")
    return ranks


def test_any_number_of_ranks_gives_the_same_curve(workshop: Path, curve: dict[int, float], on_other_ranks: int) -> None:
    """fp32: relative difference at most 1e-6 at step 1 and 1e-4 at step 50."""
    other = losses(workshop / "runs" / f"ranks{on_other_ranks}")
    assert abs(other[1] / curve[1] - 1) <= 1e-6
    assert abs(other[50] / curve[50] - 1) <= 1e-4


def test_a_killed_run_continues_on_another_number_of_ranks(workshop: Path, curve: dict[int, float], on_other_ranks: int) -> None:
    _continued(workshop, curve, on_other_ranks)


def test_a_killed_run_continues_on_as_many_ranks(workshop: Path, curve: dict[int, float], killed: Path) -> None:
    _train(workshop, _resumable(workshop, killed, 2).name, 2)
    _continued(workshop, curve, 2)


def _continued(workshop: Path, curve: dict[int, float], ranks: int) -> None:
    """As if nothing had happened, and the torn checkpoint was passed over."""
    resumed = losses(workshop / "runs" / f"resumed{ranks}")
    assert sorted(resumed) == list(range(1, 51))
    assert all(abs(resumed[step] / curve[step] - 1) <= 1e-4 for step in resumed)
    assert not (workshop / f"opened{ranks}").exists()


def test_a_signal_stops_at_a_step_boundary_and_asks_to_be_requeued(workshop: Path, curve: dict[int, float]) -> None:
    """Exit 75 with a checkpoint of that very step; the next start continues from it and ends as ever."""
    run = workshop / "runs" / "preempted"
    process = start("train", workshop / "recipe.yaml", "--set", "name=preempted", "--ranks", 2)
    wait_for(lambda: max(losses(run), default=0) >= 5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == EXIT_REQUEUE
    stopped = max(losses(run))
    assert stopped < 50 and (run / "checkpoints" / f"step-{stopped:06d}" / "COMMIT.json").is_file()
    assert abs(_train(workshop, "preempted", 2)[50] / curve[50] - 1) <= 1e-4


def test_a_run_folder_is_not_reused_for_another_recipe(workshop: Path, curve: dict[int, float]) -> None:
    """Nor started over when asked not to be continued."""
    other = speechkd("train", workshop / "recipe.yaml", "--set", "name=two", "--set", "optim.lr=1e-4", "--ranks", 2)
    assert other.returncode == EXIT_INPUT and "another recipe (`optim.lr` is" in other.stderr and other.stderr.count("\n") == 1
    export = speechkd("export", workshop / "recipe.yaml", "--set", "name=two", "--set", "optim.lr=1e-4", "--out", workshop / "never")
    assert export.returncode == EXIT_INPUT and "`optim.lr` is `0.0001`, there `0.0002`" in export.stderr
    assert not (workshop / "never").exists()
    never = speechkd("train", workshop / "recipe.yaml", "--set", "name=two", "--ranks", 2, "--resume", "never")
    assert never.returncode == EXIT_INPUT and "--resume never" in never.stderr
    require = speechkd("train", workshop / "recipe.yaml", "--set", "name=fresh", "--ranks", 2, "--resume", "require")
    assert require.returncode == EXIT_INPUT and "no valid checkpoint" in require.stderr
