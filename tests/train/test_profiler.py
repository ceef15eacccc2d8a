"""`train.profile` profiles just the steps that it names, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkd.core.config import build
from speechkd.core.errors import InputError
from speechkd.train.config import TrainConfig
from speechkd.train.profiler import FOLDER, SUMMARY, TRACE, StepProfiler

PHASES = {"regime": "kd", "regimes": {"kd": [{"name": "kd", "steps": 9, "mix": {"kd": 1}}]}}


def test_a_trace_and_a_page_of_the_steps_that_are_asked_for(tmp_path: Path) -> None:
    config = build(TrainConfig, {**PHASES, "profile": {"from": 2, "steps": 1}}, "recipe").profile
    profiler = StepProfiler(config, tmp_path)
    for step in range(5):
        profiler.begin()
        torch.ones(3, 3) @ torch.ones(3, 3) if step == 2 else torch.ones(3).cumsum(0)
        profiler.end()
        assert (tmp_path / FOLDER / TRACE).exists() == (step >= 2)
    page = (tmp_path / FOLDER / SUMMARY).read_text()
    assert "1 steps of rank 0, after 2" in page and "aten::mm" in page and "cumsum" not in page


def test_without_the_key_nothing_is_written_and_a_misspelt_one_is_refused(tmp_path: Path) -> None:
    profiler = StepProfiler(None, tmp_path)
    profiler.begin()
    profiler.end()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="did you mean `steps`"):
        build(TrainConfig, {**PHASES, "profile": {"from": 2, "step": 1}}, "recipe")
