"""Phases: first the teacher's answers, then the labels, with a kill in the second phase."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import here, losses, speechkd


@pytest.mark.slow
def test_a_run_continues_inside_its_second_phase(workshop: Path) -> None:
    """Two steps of kd, three of ift; the last checkpoint is torn, so it goes on from step 4 and ends as before."""
    phases = "[{name: kd, steps: 2, mix: {kd: 1}}, {name: ift, steps: 3, mix: {ift: 1}}]"
    sets = ["--set", "name=phases", "--set", "train.regime=kd_ift", "--set", f"train.regimes.kd_ift={phases}"]
    sets += ["--set", "train.checkpoint_every=2", "--set", "train.keep_checkpoints=3"]
    assert here("teach", workshop / "recipe.yaml", *sets).returncode == 0
    done = speechkd("train", workshop / "recipe.yaml", *sets, "--ranks", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    run = workshop / "runs" / "phases"
    before = losses(run)
    assert sorted(before) == [1, 2, 3, 4, 5]
    (run / "checkpoints" / "step-000005" / "COMMIT.json").unlink()
    (run / "journal.jsonl").unlink()
    again = speechkd("train", workshop / "recipe.yaml", *sets, "--ranks", 2)
    assert again.returncode == 0 and "continues from" in again.stderr and "step-000004" in again.stderr
    assert losses(run) == {5: before[5]}
    shutil.rmtree(run)
