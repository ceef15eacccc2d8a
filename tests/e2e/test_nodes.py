"""Two launchers on loopback as two nodes: whatever dies, stops or refuses on one, the other ends with a reason, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from speechkd.core.errors import EXIT_INPUT, EXIT_REQUEUE
from speechkd.core.files import read_json_lines
from tests.e2e.conftest import ended, kill_one_rank, losses, start_on_nodes, wait_for

pytestmark = [pytest.mark.system, pytest.mark.alone]
STALL_S = 60


@pytest.fixture(scope="module")
def words(workshop: Path) -> list[object]:
    """A long run, which each of these tests continues where the last one left it."""
    sets = ("name=two_nodes", f"train.stall_s={STALL_S}", "train.regimes.kd.0.steps=5000", "train.checkpoint_every=5")
    return [workshop / "recipe.yaml", *(word for text in sets for word in ("--set", text))]


def training(words: list[object], run: Path) -> list[subprocess.Popen[str]]:
    """Both launchers, when their ranks are training."""
    before = max(losses(run), default=0)
    launchers = start_on_nodes(2, *words)
    wait_for(lambda: max(losses(run), default=0) > before + 2 or any(launcher.poll() is not None for launcher in launchers), 240)
    assert all(launcher.poll() is None for launcher in launchers), ended(launchers)
    return launchers


def workers(run: Path) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if "speechkd.stages.worker" in (c := p.info["cmdline"] or []) and str(run) in c]


@pytest.mark.parametrize("struck", ["a rank of node 1", "launcher of node 1", "launcher of node 0", "a rank of node 1 stops"])
def test_what_strikes_one_node_ends_the_other_with_a_reason(workshop: Path, words: list[object], struck: str) -> None:
    """Within `stall_s`, and with no process left; a rank that merely stops takes `stall_s` to be noticed, and then as long to be ended."""
    run = workshop / "runs" / "two_nodes"
    launchers = training(words, run)
    began = time.monotonic()
    if struck.startswith("a rank"):
        kill_one_rank(run, 1, signal.SIGSTOP if struck.endswith("stops") else signal.SIGKILL)
    else:
        launchers[int(struck[-1])].kill()
    (first, said), (second, also) = ended(launchers, 120)
    assert time.monotonic() - began <= (120 if struck.endswith("stops") else STALL_S)
    wait_for(lambda: not workers(run), 20)
    if struck == "a rank of node 1":
        assert (first, second) == (1, 1) and "rank 1 ended with SIGKILL" in also
        assert f"node 1 ({os.uname().nodename}): rank 1 ended with SIGKILL" in said
        assert read_json_lines(run / "restarts.jsonl")[-1]["reason"] in said
    elif struck == "launcher of node 1":
        assert (first, second) == (1, -signal.SIGKILL) and f"node 1 ({os.uname().nodename}) has been silent for more than" in said
    elif struck == "launcher of node 0":
        assert (first, second) == (-signal.SIGKILL, 1) and f"node 0 ({os.uname().nodename}) is gone: its store at" in also
    else:
        assert (first, second) == (1, 1) and "it has stalled" in said, said[-3000:] + also[-3000:]
        assert re.search(rf"node [01] \({os.uname().nodename}\): rank [01]: it has stalled", also.splitlines()[-1]), also[-3000:]


def test_a_signal_to_either_launcher_stops_all_and_asks_to_be_requeued(workshop: Path, words: list[object]) -> None:
    """What the nodes killed before left is continued: nothing of the curve is missing."""
    run = workshop / "runs" / "two_nodes"
    launchers = training(words, run)
    launchers[1].send_signal(signal.SIGUSR1)
    (first, said), (second, also) = ended(launchers, 120)
    assert (first, second) == (EXIT_REQUEUE, EXIT_REQUEUE), said[-2000:] + also[-2000:]
    curve = losses(run)
    assert sorted(curve) == list(range(1, max(curve) + 1))
    assert (run / "checkpoints" / f"step-{max(curve):06d}" / "COMMIT.json").is_file()


def test_a_refusal_is_one_line_on_every_node(workshop: Path, words: list[object]) -> None:
    (first, said), (second, also) = ended(start_on_nodes(2, *words, "--set", "optim.lr=1e-5"), 120)
    assert (first, second) == (EXIT_INPUT, EXIT_INPUT)
    [line] = said.splitlines()
    assert "belongs to another recipe (`optim.lr` is" in line and also.splitlines() == [line]
