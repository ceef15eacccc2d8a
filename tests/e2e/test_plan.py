"""What `speechkd plan --cluster` foretells, beside what the run then does on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechkd.engine.checkpoint import MOMENTS, WEIGHTS
from speechkd.tracking.journal import JOURNAL, read_journal
from tests.e2e.conftest import speechkd

CLUSTER = "name: here\ngpus_per_node: 0\nranks_per_node: 2\nsocket_ifname: lo\n"


@pytest.mark.system
def test_hours_and_checkpoints_are_what_the_run_then_reports(workshop: Path, tmp_path: Path) -> None:
    """Training's seconds from twelve measured steps; the bytes of a checkpoint exactly; a second plan reads the run itself."""
    (tmp_path / "here.yaml").write_text(CLUSTER)
    words = (workshop / "recipe.yaml", "--set", "name=planned")
    ask = (*words, "--cluster", tmp_path / "here.yaml", "--json")
    done = speechkd("plan", *ask, "--measure")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    seconds = {stage["stage"]: stage["seconds"] for stage in told["stages"]}
    assert seconds["shard"] == seconds["teach"] == 0.0 and not (workshop / "runs/planned").exists()
    done = speechkd("train", *words, "--ranks", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    run = workshop / "runs" / "planned"
    records = list(read_journal(run / JOURNAL))
    took = (records[-1]["time_ms"] - records[0]["time_ms"]) / 1000
    checkpoint = run / "checkpoints" / "step-000050"
    assert told["checkpoint_bytes"] == sum((checkpoint / file).stat().st_size for file in (WEIGHTS, MOMENTS))
    print(f"train: planned {seconds['train']:.1f} s, took {took:.1f} s ({seconds['train'] / took - 1:+.1%})")
    assert seconds["train"] == pytest.approx(took, rel=0.25), "15 % on a quiet machine; tests share theirs"
    again = json.loads(speechkd("plan", *ask).stdout)
    assert "measured in" in again["pace"]["basis"]
    assert next(s["seconds"] for s in again["stages"] if s["stage"] == "train") == pytest.approx(took, rel=0.1)
