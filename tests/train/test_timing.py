"""The rank that others wait for is named, by what it does itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechkd.cluster.local import run_ranks

STRAGGLING = str(Path(__file__).with_name("straggling.py"))


def test_the_slow_rank_is_named_on_all_ranks(tmp_path: Path) -> None:
    assert run_ranks([STRAGGLING, str(tmp_path)], 2).code == 0
    values, others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert values == others
    assert values["train/slowest_rank"] == 1
    assert values["train/straggler_ratio"] == pytest.approx(0.15 / 0.09, rel=0.2), "0.15 s of its own, the other 0.03 s"
    assert values["train/step_seconds"] >= 0.1 and values["train/eta_seconds"] == pytest.approx(10 * values["train/step_seconds"])
    assert values["rank/1/data_wait_ratio"] > 3 * values["rank/0/data_wait_ratio"] > 0
    assert values["rank/0/step_seconds"] == pytest.approx(values["rank/1/step_seconds"], rel=0.3), "they wait for each other"
    assert values["train/mfu"] == pytest.approx(3e11 / 2e12)
