"""What `speechkd plan --cluster` foretells, beside what the run then does on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speechkd.engine.checkpoint import MOMENTS, WEIGHTS
from speechkd.tracking.journal import JOURNAL, read_journal
from tests.e2e.conftest import speechkd

CLUSTER = "name: here\ngpus_per_node: 0\nranks_per_node: 2\nsocket_ifname: lo\n"


@pytest.mark.torture  # it judges seconds, which needs a machine that does nothing else
def test_hours_and_checkpoints_are_what_the_run_then_reports(workshop: Path, tmp_path: Path) -> None:
    """Training's seconds within 15 %, from twelve steps measured before it and twelve after it; the bytes of a checkpoint exactly.

    Other tests may use the machine, too: the run's pace lies between those of its neighbours in time. A third plan reads the run itself.
    """
    (tmp_path / "here.yaml").write_text(CLUSTER)
    words = (workshop / "recipe.yaml", "--set", "train.regimes.kd.0.steps=30")
    ask = ("--cluster", tmp_path / "here.yaml", "--json")
    before = told("plan", *words, "--set", "name=before", *ask, "--measure")
    assert seconds(before, "shard") == seconds(before, "teach") == 0.0 and not (workshop / "runs/before").exists()
    done = speechkd("train", *words, "--set", "name=planned", "--ranks", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    run = workshop / "runs" / "planned"
    records = list(read_journal(run / JOURNAL))
    took = (records[-1]["time_ms"] - records[0]["time_ms"]) / 1000
    checkpoint = run / "checkpoints" / "step-000030"
    assert before["checkpoint_bytes"] == sum((checkpoint / file).stat().st_size for file in (WEIGHTS, MOMENTS))
    planned = [seconds(before, "train"), seconds(told("plan", *words, "--set", "name=after", *ask, "--measure"), "train")]
    print(f"train: planned {planned[0]:.1f} s before and {planned[1]:.1f} s after, took {took:.1f} s")
    assert 0.85 * min(planned) <= took <= 1.15 * max(planned)
    again = told("plan", *words, "--set", "name=planned", *ask)
    assert "measured in" in again["pace"]["basis"] and seconds(again, "train") == pytest.approx(took, rel=0.1)


def told(*words: object) -> dict[str, Any]:
    done = speechkd(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def seconds(report: dict[str, Any], stage: str) -> float:
    return next(float(entry["seconds"]) for entry in report["stages"] if entry["stage"] == stage)
