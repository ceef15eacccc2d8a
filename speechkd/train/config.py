"""How long, in which phases, and how often to save: the recipe's `train` block."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from speechkd.core.config import Config
from speechkd.core.errors import unknown_name


class Phase(Config):
    """A stretch of training. `mix` says how many passes over each role's column one epoch makes, e.g. {kd: 1, ift: 0.5}."""

    name: str
    steps: int = Field(gt=0)
    mix: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class TrainConfig(Config):
    """`regimes` are named lists of phases; `regime` picks one (`--set train.regime=mix`)."""

    regime: str
    regimes: dict[str, list[Phase]]
    log_every: int = Field(10, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, ge=2)
    max_nonfinite: int = Field(10, gt=0)
    """consecutive steps with a non-finite loss or gradient after which the run stops"""
    prefetch: int = Field(2, ge=1)
    """global steps that are read ahead"""
    workers: int = Field(2, ge=0)
    """threads of each rank that read, decode and collate ahead; 0: the training thread itself"""

    @model_validator(mode="after")
    def _known_regime(self) -> TrainConfig:
        if self.regime not in self.regimes:
            raise ValueError(unknown_name("regime", self.regime, self.regimes))
        if not self.phases:
            raise ValueError(f"regime `{self.regime}` has no phases")
        return self

    @property
    def phases(self) -> list[Phase]:
        """The phases of the chosen regime."""
        return self.regimes[self.regime]

    @property
    def steps(self) -> int:
        """Global steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def roles(self) -> list[str]:
        """Teacher roles that the chosen regime trains on, in order of first use."""
        return list(dict.fromkeys(role for phase in self.phases for role, passes in phase.mix.items() if passes > 0))
