"""Optimiser settings and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from speechkd.core.config import Config

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """AdamW. `clip` is always written out: DeepSpeed clips at 1.0 when it is absent."""

    lr: float = Field(5e-5, gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    final_ratio: float = Field(0.0, ge=0, le=1)
    """learning rate at the last step, as a share of `lr` (cosine, linear)"""
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of global step `step` (0-based) of `steps`: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.final_ratio + (1 - config.final_ratio) * shape)
