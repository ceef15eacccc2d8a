"""The learning rate is a pure function of the step."""

from __future__ import annotations

import pytest

from speechkd.train.optim import OptimConfig, learning_rate


def test_warmup_then_schedule() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=10, final_ratio=0.1)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and 0.1 < rates[-1] < 0.101
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_linear_and_constant() -> None:
    assert learning_rate(OptimConfig(lr=2.0, schedule="linear"), 50, 100) == pytest.approx(1.0)
    assert learning_rate(OptimConfig(lr=2.0), 99, 100) == 2.0
