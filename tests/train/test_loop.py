"""The step loop on a real engine: when it saves, reports and stops, and that no step waits for the device."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.train.looping import ROOT, STOPPED


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `looping.py` found, in a process of its own: a process group is for good."""
    out = tmp_path_factory.mktemp("loop")
    done = subprocess.run([sys.executable, "-m", "tests.train.looping", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "facts.json").read_text())
    return found | {"said": done.stderr}


def test_no_step_asks_the_device_for_a_number(facts: dict[str, Any]) -> None:
    """Between two reports; what DeepSpeed itself asks (overflow, gradient norm) is not ours."""
    assert facts["asked"] == []


def test_ctrl_c_saves_at_the_end_of_the_very_step(facts: dict[str, Any]) -> None:
    assert facts["outcome"] == "preempted" and facts["saved"] == [STOPPED + 1] and facts["committed"]
    assert facts["steps"] == [1, 3, 6]


def test_the_watchdog_knows_what_every_step_is_at(facts: dict[str, Any]) -> None:
    micro = ["forward", "backward", "optimizer"]
    plain = ["all_reduce", *micro, *micro, "device", "report"]
    acts = [[act for at, act in facts["acts"] if at == step] for step in range(STOPPED + 1)]
    assert acts == [plain, *[["data", *plain]] * (STOPPED - 1), ["data", *plain, "checkpoint"]]


def test_which_kernels_ran_is_said_once_and_kept(facts: dict[str, Any]) -> None:
    assert facts["tags"]["kernel.linear_topk_kl"] == "chunked" and facts["tags"]["kernel.stack_norm_mlp"]
    assert facts["said"].count("kernel linear_topk_kl: chunked") == 1


def test_the_mass_that_a_stored_top_k_keeps_is_that_of_its_rows(facts: dict[str, Any]) -> None:
    """Rows of the other stream, which has no such signal, and the empty micro-batch do not count."""
    measured, wanted = facts["mass"]
    assert 0 < wanted < 1 and measured == pytest.approx(wanted, abs=1e-6)


def test_the_documents_list_every_metric_of_training(facts: dict[str, Any]) -> None:
    table = set(re.findall(r"`((?:train|teacher|rank|checkpoint)/[a-z_<>/]+)`", (ROOT / "docs/operations.md").read_text(encoding="utf-8")))
    elsewhere = {"train/gpu_memory_peak_gib", "train/spikes_skipped", "rank/<r>/step_seconds", "rank/<r>/data_wait_ratio"}
    """on GPUs, with a guard, with several ranks"""
    assert {name.replace("loss_topk_kl", "loss_<name>") for name in facts["names"]} | elsewhere == table
