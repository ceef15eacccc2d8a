"""NaN at twenty steps and one loss spike: nothing bad is ever saved, and both are counted, through a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.poisoned import POISONED, ROOT, STEPS


@pytest.mark.system
def test_no_bad_weight_is_saved_and_the_counters_are_exact(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.poisoned", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["saved"] == STEPS and facts["bad"] == 0
    assert facts["saves"] == STEPS - 1, "but for the last one of a start that did not know that it would stop"
    assert facts["skipped"] == [STEPS, POISONED] and facts["spikes"] == [STEPS, 1]
    assert all(facts["same"]) and facts["moved"], "a skipped step changes nothing, and the others do"
    assert facts["straggler"] == 1.0, "one rank is its own median"
    assert done.stderr.count("train: an update was dropped: loss") == 1
