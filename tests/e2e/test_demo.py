"""`speechkd demo` from nothing: what README promises, measured."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import speechkd

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1500)]

FLOORS = {"language": (0.90, 0.80), "gender": (0.95, 0.80), "rate": (0.90, 0.85), "digits": (0.55, 0.45)}
"""task -> (new utterances of known voices, voices never heard); digits are 1 - WER"""


def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = speechkd("demo", "--out", out, timeout=1400)
    assert done.returncode == 0, done.stderr[-3000:]
    tasks = json.loads((out / "summary.json").read_text(encoding="utf-8"))["tasks"]
    for task, (known, unseen) in FLOORS.items():
        assert tasks[task]["student"] >= known and tasks[task]["unseen"] >= unseen, (task, tasks[task])
    for task, row in tasks.items():
        assert row["n"] >= 300 and row["teacher"] >= 0.95, (task, row)
        assert row["hears"] and row["permutation"]["p"] < 1e-3, (task, row)
        assert row["shuffled"] <= row["chance"] + 0.1 and row["untrained"] <= row["chance"] + 0.1, (task, row)
    began = time.monotonic()
    assert speechkd("demo", "--out", out).returncode == 0 and time.monotonic() - began < 40
