"""Ranks killed at random moments, also inside a save: training always continues from a complete checkpoint, as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import ROOT

STEPS = 24


@pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.system), pytest.param(100, marks=pytest.mark.torture)])
def test_killed_again_and_again_on_one_two_and_four_ranks(workshop: Path, tmp_path: Path, kills: int) -> None:
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["train"] |= {"checkpoint_every": 2, "keep_checkpoints": 3}
    recipe["train"]["regimes"]["kd"][0]["steps"] = STEPS
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    words = [str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), "--kills", str(kills), "--seed", str(kills)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.e2e.kill_ranks", *words], cwd=ROOT, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["kills"] == kills and found["in_a_save"] >= kills // 5 and found["damaged"] >= kills // 10
    assert all(found["worlds"].values()) and found["worst"] <= 1e-4
