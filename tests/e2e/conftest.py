"""A corpus of a minute, made by the real source, and the embedded recipe pointed at it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest
import yaml

from speechkd import cli
from speechkd.core.locks import exclusive
from speechkd.recipe import load_recipe
from speechkd.tracking.journal import JOURNAL, metric_series
from tests.cluster.ports import free_port
from tests.e2e.several import train_several

ROOT = Path(__file__).parents[2]
STEPS, CHECKPOINT_EVERY = 24, 10
"""Of the workshop's recipe."""


@contextlib.contextmanager
def shared(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all test processes of this call share, and whether it is still to be filled. Others wait meanwhile."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    done = folder / ".filled"
    with exclusive(folder / ".filling", 600, f"another test process fills `{folder}`"):
        yield folder, not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small espeak card, sharded and taught, and `recipe.yaml` that trains on it for `STEPS` short steps."""
    with shared(tmp_path_factory, "workshop") as (folder, empty):
        if empty:
            fill_workshop(folder)
    return folder


def fill_workshop(folder: Path) -> None:
    """Write card and recipe, shard and teach."""
    card = yaml.safe_load((ROOT / "shards/cards/minibabel.yaml").read_text(encoding="utf-8"))
    card["name"] = "tiny"
    languages = list(card["source"]["languages"])[:2]
    card["source"]["languages"] = {name: card["source"]["languages"][name] for name in languages}
    card["source"]["splits"] = {
        "train": {"clips": 48},
        "test_known": {"clips": 24, "transcripts": "held_out"},
        "test_unseen": {"clips": 12, "transcripts": "held_out", "voices": "unseen"},
    }
    card["tasks"]["language"]["choices"] = languages
    card["shard_samples"] = 24
    (folder / "tiny.yaml").write_text(yaml.safe_dump(card, allow_unicode=True, sort_keys=False), encoding="utf-8")
    recipe = yaml.safe_load((ROOT / "pipelines/meta_prompt_kd.yaml").read_text(encoding="utf-8"))
    recipe["runs"] = str(folder / "runs")
    recipe["data"] = {"root": str(folder / "data"), "corpora": [{"card": str(folder / "tiny.yaml")}]}
    # Curves are compared over steps of few examples: at the demo's rate such training is chaotic, and rounding alone grows a hundredfold
    # in five steps (measured), whatever the ranks.
    recipe["optim"] |= {"lr": 2e-4, "warmup_steps": 5}
    recipe["plan"] |= {"micro_batches": 4, "max_examples": 3}
    recipe["train"] |= {"log_every": 1, "checkpoint_every": CHECKPOINT_EVERY}
    recipe["train"]["regimes"] = {"kd": [{"name": "kd", "steps": STEPS, "mix": {"kd": 1}}]}
    recipe["evaluation"]["limit"] = 12
    recipe["tracking"] = {"uri": None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), encoding="utf-8")
    assert here("shard", folder / "tiny.yaml", "--out", folder / "data").returncode == 0
    assert here("teach", folder / "recipe.yaml").returncode == 0


def here(*words: object) -> subprocess.CompletedProcess[str]:
    """A command in this process, which has loaded the libraries: for what starts no ranks and is not about processes."""
    code = 0
    command = _command(words)
    with contextlib.chdir(ROOT), mock.patch.object(sys, "argv", ["speechkd", *command[3:]]):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                cli.main()
            except SystemExit as leaving:
                code = int(leaving.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def speechkd(*words: object, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """The real command, in the project's folder."""
    return subprocess.run(_command(words), cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def start(*words: object) -> subprocess.Popen[bytes]:
    """The real command, in the background."""
    return subprocess.Popen(_command(words), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_on_nodes(nodes: int, *words: object) -> list[subprocess.Popen[str]]:
    """`speechkd train` as srun would start it on several nodes; here all of them are this machine, by way of launch/node.sh."""
    command = [ROOT / "launch/node.sh", *words, "--nodes", nodes, "--rendezvous", f"127.0.0.1:{free_port()}"]
    env = {**os.environ, "SPEECHKD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}  # as two ranks of one node have: sums in the same order
    return [
        subprocess.Popen(
            list(map(str, command)), env={**env, "SLURM_NODEID": str(i)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for i in range(nodes)
    ]


def ended(launchers: list[subprocess.Popen[str]], timeout: float = 300) -> list[tuple[int, str]]:
    """Exit code and output of each launcher; none outlives the test."""
    try:
        outputs = [launcher.communicate(timeout=timeout)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    return [(launcher.returncode, output) for launcher, output in zip(launchers, outputs, strict=True)]


def _command(words: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "speechkd", *map(str, words)]


def losses(run: Path) -> dict[int, float]:
    """Step -> loss, from the run's journal."""
    return dict(metric_series(run / JOURNAL).get("train/loss", []))


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until `what` holds; fails the test if it does not in time."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def kill_one_rank(run: Path, rank: int = 0, number: signal.Signals = signal.SIGKILL) -> None:
    """SIGKILL one worker of a run, or send it another signal."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "speechkd.stages.worker" in words and str(run) in words and process.environ().get("RANK") == str(rank):
            os.kill(process.pid, number)
            return
    raise AssertionError("no such worker")


@pytest.fixture(scope="session")
def exported(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a short two-rank run."""
    sets = ["name=short", "train.regimes.kd.0.steps=3"]
    out = workshop / "runs" / "short" / "export"
    with shared(tmp_path_factory, "exported") as (_, missing):
        if missing:
            with contextlib.chdir(ROOT):
                train_several([load_recipe(workshop / "recipe.yaml", sets)])
            done = here("export", workshop / "recipe.yaml", *(word for text in sets for word in ("--set", text)), "--out", out)
            assert done.returncode == 0, done.stderr[-2000:]
    return out
