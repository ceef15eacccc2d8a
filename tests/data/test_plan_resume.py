"""Killed and resumed at other world sizes, with other numbers of workers: the sequence of examples is the uninterrupted one."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechkd.data.plan.plan import Plan
from tests.data.plans import Step, divisors, epoch_steps, global_steps, plans

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LONG = settings(QUICK, max_examples=10_000)
ROOT = Path(__file__).parents[2]


def _interrupted_epoch(plan: Plan, data: st.DataObject) -> None:
    """One epoch, far from the first, with at least three kills in it: after its first step, before its last, and where it is drawn."""
    epoch = data.draw(st.integers(0, 5), "epoch")
    first = sum(plan.steps_per_epoch(e) for e in range(epoch))
    steps = plan.steps_per_epoch(epoch)
    whole = epoch_steps(plan, epoch)
    kills = data.draw(st.lists(st.integers(0, steps), min_size=1, max_size=3), "kills") if steps else []
    cuts = sorted([0, *kills, min(1, steps), max(0, steps - 1), steps])
    worlds = st.sampled_from(divisors(plan.config.micro_batches))
    seen: list[Step] = []
    for start, until in zip(cuts[:-1], cuts[1:], strict=True):  # equal cuts: killed before a step was done
        world = data.draw(worlds, "world")
        workers = {data.draw(st.integers(0, world - 1)): data.draw(st.integers(0, 8), "workers")}
        seen += global_steps(plan, first + steps, first + start, first + until, world, workers)
    assert seen == whole


@QUICK
@given(plans([64, 60], 3), st.data())
def test_any_kills_and_resizes_give_the_uninterrupted_sequence(plan: Plan, data: st.DataObject) -> None:
    _interrupted_epoch(plan, data)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@LONG
@given(plans([64, 60], 3), st.data())
def test_ten_thousand_kills_and_resizes(plan: Plan, data: st.DataObject) -> None:
    _interrupted_epoch(plan, data)


@settings(QUICK, max_examples=20)
@given(plans([64, 60], 3), st.integers(0, 3))
def test_every_world_deals_out_the_same_steps(plan: Plan, epoch: int) -> None:
    first, steps = sum(plan.steps_per_epoch(e) for e in range(epoch)), plan.steps_per_epoch(epoch)
    whole = epoch_steps(plan, epoch)
    for world in divisors(plan.config.micro_batches):
        assert list(global_steps(plan, first + steps, first, first + steps, world, {})) == whole


def read_processes(root: Path, cuts: list[int], worlds: list[int], workers: list[int]) -> list[list[str]]:
    """Steps as real ranks read them from shards, every rank killed with SIGKILL where its part ends; the last ones end by themselves."""
    steps: list[list[str]] = []
    for start, until, world, threads in zip(cuts[:-1], cuts[1:], worlds, workers, strict=True):
        arguments = [str(value) for value in (root, world, start, cuts[-1], threads)]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.data.reading_rank", str(rank), *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            for rank in range(world)
        ]
        lines = [[rank.stdout.readline().strip() for _ in range(start, until)] for rank in ranks if rank.stdout]
        for rank in ranks:
            rank.kill() if until < cuts[-1] else None
            rank.communicate()
            assert rank.returncode == (-9 if until < cuts[-1] else 0)
        steps += [list(step) for step in zip(*lines, strict=True)]
    return [[" ".join(step)] for step in steps]


@pytest.mark.slow
def test_killed_processes_read_the_same_examples(tones_root: Path) -> None:
    """Their keys, the samples they heard and the tokens they read, step by step."""
    whole = read_processes(tones_root, [0, 9], [1], [0])
    assert len(whole) == 9 and all(step[0] for step in whole)
    assert read_processes(tones_root, [0, 2, 3, 9], [2, 1, 4], [3, 8, 1]) == whole


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_many_killed_processes(tones_root: Path) -> None:
    draw = random.Random(1)
    whole = read_processes(tones_root, [0, 40], [1], [0])
    for _ in range(25):
        cuts = [0, *sorted(draw.sample(range(1, 40), 4)), 40]
        worlds, workers = [draw.choice([1, 2, 4]) for _ in cuts[1:]], [draw.randint(0, 8) for _ in cuts[1:]]
        assert read_processes(tones_root, cuts, worlds, workers) == whole
