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
from tests.e2e.conftest import CHECKPOINT_EVERY, ROOT, STEPS, ended, here, kill_one_rank, losses, start, start_on_nodes, wait_for
from tests.e2e.several import train_several

pytestmark = pytest.mark.slow
WORLDS = (1, 2, 4)


def _train(workshop: Path, names: dict[str, int]) -> None:
    """These runs of the workshop's recipe, each to its end on so many ranks."""
    with contextlib.chdir(ROOT):
        train_several([load_recipe(workshop / "recipe.yaml", [f"name={name}"]) for name in names], list(names.values()), resume="auto")


@pytest.fixture(scope="module")
def curve(workshop: Path) -> dict[int, float]:
    """The uninterrupted curve on two ranks."""
    _train(workshop, {"two": 2})
    found = losses(workshop / "runs" / "two")
    assert sorted(found) == list(range(1, STEPS + 1))
    first, last = ([found[step] for step in steps] for steps in (range(1, 7), range(STEPS - 5, STEPS + 1)))
    assert sum(last) < sum(first)
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
    assert [(event["event"], event["step"], event.get("code")) for event in events] == [("start", 0, None), ("end", STEPS, 0)]


@pytest.fixture(scope="module")
def killed(workshop: Path) -> Path:
    """A two-rank run of which one rank was killed after its first checkpoint."""
    run = workshop / "runs" / "killed"
    process = start("train", workshop / "recipe.yaml", "--set", "name=killed", "--ranks", 2)
    wait_for(lambda: max(losses(run), default=0) >= CHECKPOINT_EVERY + 3)
    kill_one_rank(run, rank=1)
    assert process.wait(60) == 1
    assert [folder.name for folder in sorted((run / "checkpoints").glob("step-*"))] == [f"step-{CHECKPOINT_EVERY:06d}"]
    return run


def _resumable(workshop: Path, killed: Path, ranks: int) -> Path:
    """A copy of the killed run. A torn checkpoint stands beside the good one, with a pickle in it that must never be opened."""
    run = workshop / "runs" / f"resumed{ranks}"
    shutil.copytree(killed, run)
    torn = run / "checkpoints" / f"step-{2 * CHECKPOINT_EVERY:06d}"
    shutil.copytree(run / "checkpoints" / f"step-{CHECKPOINT_EVERY:06d}", torn)
    (torn / "COMMIT.json").unlink()
    (torn / "moments.pkl").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(workshop / f"opened{ranks}").encode())
    return run


@pytest.fixture(scope="module")
def on_other_ranks(workshop: Path, curve: dict[int, float], killed: Path) -> None:
    """The recipe trained from its start on one and on four ranks, and the killed run to its end on one, two and four."""
    resumed = {_resumable(workshop, killed, ranks).name: ranks for ranks in WORLDS}
    _train(workshop, {"ranks1": 1, "ranks4": 4} | resumed)


@pytest.mark.parametrize("ranks", [1, 4])
def test_any_number_of_ranks_gives_the_same_curve(workshop: Path, curve: dict[int, float], on_other_ranks: None, ranks: int) -> None:
    """fp32: relative difference at most 1e-6 at step 1 and 1e-4 at the last."""
    other = losses(workshop / "runs" / f"ranks{ranks}")
    assert abs(other[1] / curve[1] - 1) <= 1e-6
    assert abs(other[STEPS] / curve[STEPS] - 1) <= 1e-4


@pytest.mark.parametrize("ranks", WORLDS)
def test_a_killed_run_continues_on_any_number_of_ranks(workshop: Path, curve: dict[int, float], on_other_ranks: None, ranks: int) -> None:
    """As if nothing had happened, and the torn checkpoint was passed over."""
    resumed = losses(workshop / "runs" / f"resumed{ranks}")
    assert sorted(resumed) == list(range(1, STEPS + 1))
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
    assert stopped < STEPS and (run / "checkpoints" / f"step-{stopped:06d}" / "COMMIT.json").is_file()
    _train(workshop, {"preempted": 2})
    assert abs(losses(run)[STEPS] / curve[STEPS] - 1) <= 1e-4


def test_a_run_folder_is_not_reused_for_another_recipe(workshop: Path, curve: dict[int, float]) -> None:
    """Nor started over when asked not to be continued."""
    other = here("train", workshop / "recipe.yaml", "--set", "name=two", "--set", "optim.lr=1e-4", "--ranks", 2)
    assert other.returncode == EXIT_INPUT and "another recipe (`optim.lr` is" in other.stderr and other.stderr.count("\n") == 1
    export = here("export", workshop / "recipe.yaml", "--set", "name=two", "--set", "optim.lr=1e-4", "--out", workshop / "never")
    assert export.returncode == EXIT_INPUT and "`optim.lr` is `0.0001`, there `0.0002`" in export.stderr
    assert not (workshop / "never").exists()
    never = here("train", workshop / "recipe.yaml", "--set", "name=two", "--ranks", 2, "--resume", "never")
    assert never.returncode == EXIT_INPUT and "--resume never" in never.stderr
    require = here("train", workshop / "recipe.yaml", "--set", "name=fresh", "--ranks", 2, "--resume", "require")
    assert require.returncode == EXIT_INPUT and "no valid checkpoint" in require.stderr
