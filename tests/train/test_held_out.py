"""The held-out loss is the same on any number of ranks, finds the better checkpoint, and stops a run that only overfits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from speechkd.data.plan.plan import ExampleRef
from speechkd.train.held_out import draw, metric_name
from speechkd.train.history import History

ROOT = Path(__file__).parents[2]


def run(out: Path, ranks: int, *words: str) -> dict[str, Any]:
    out.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    agent = ["-m", "tests.forked", str(ranks)] if ranks > 1 else ["-m"]
    command = [sys.executable, *agent, "tests.train.holding_out", str(out), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    facts: dict[str, Any] = json.loads((out / "facts.json").read_text())
    return facts


@pytest.mark.system
def test_one_two_and_four_ranks_measure_the_same(tmp_path: Path) -> None:
    """Eleven batches of three groups: no number of ranks but one divides what each group has."""
    one, two, four = (run(tmp_path / str(ranks), ranks) for ranks in (1, 2, 4))
    names = ["held_out/loss", "held_out/gender", "held_out/gender_german", "held_out/gender_french", "held_out/digits"]
    for facts in (one, two, four):
        assert sorted(facts["losses"]) == sorted(names)
        for name, value in facts["losses"].items():
            assert value == pytest.approx(one["losses"][name], abs=1e-6) and value > 0.1
    whole = one["whole"]
    for name, group in {"loss": "all", "gender_german": "gender_german", "gender_french": "gender_french", "digits": "digits_"}.items():
        assert one["losses"][f"held_out/{name}"] == pytest.approx(whole[group], rel=1e-5)


@pytest.mark.system
def test_a_run_that_overfits_stops_and_keeps_the_better_checkpoint(tmp_path: Path) -> None:
    facts = run(tmp_path / "run", 1, "overfit")
    held_out = {int(step): loss for step, loss in facts["held_out"].items()}
    history = json.loads((tmp_path / "run/history.json").read_text())
    best = min(held_out, key=lambda step: held_out[step])
    stopped = max(held_out)
    assert facts["outcome"] == "finished" and stopped < 40 and history["stopped"] == stopped == best + 6
    assert history["best"] == [best, pytest.approx(held_out[best])]
    trained = {int(step): loss for step, loss in facts["trained"].items()}
    assert trained[stopped] < trained[best + 1], "its training loss went on falling"
    assert facts["kept"] == [f"step-{step:06d}" for step in (stopped, stopped - 1, best)]
    assert "held_out/seconds" in facts["names"] and "held_out/gender_german" in facts["names"]


def test_the_subset_is_drawn_evenly_and_is_always_the_same() -> None:
    groups = {("a", "x"): 50, ("a", "y"): 3, ("b", ""): 40}
    examples = {group: [(f"{group}{row}", ExampleRef(0, row)) for row in range(count)] for group, count in groups.items()}
    drawn = draw(examples, 30)
    assert {group: len(refs) for group, refs in drawn.items()} == {("a", "x"): 17, ("a", "y"): 3, ("b", ""): 10}
    backwards = {group: found[::-1] for group, found in reversed(examples.items())}
    assert draw(backwards, 30) == drawn and list(draw(backwards, 30)) == list(drawn)
    assert sum(map(len, draw(examples, 1000).values())) == 93
    assert all(len(refs) == 1 for refs in draw(examples, 2).values()), "no group is left out"


def test_the_first_of_equal_losses_is_the_best_one() -> None:
    history = History([(10, 2.0), (20, 1.0), (30, 1.0), (40, 1.5)])
    assert history.best == (20, 1.0) and history.stale() == 2
    assert History().best is None and History().stale() == 0


def test_metric_names_hold_what_mlflow_takes() -> None:
    assert metric_name("gender", "zh-CN") == "held_out/gender_zh-CN" and metric_name("a:b/c") == "held_out/a-b-c"
