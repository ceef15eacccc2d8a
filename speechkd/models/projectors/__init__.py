"""Projectors: encoder states [B, F, D] to language-model embeddings [B, Q, E]; one file each, one table line."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from speechkd.core.config import Config as AnyConfig
from speechkd.core.table import Table


class Projector(Protocol):
    """What a projector gives. Its `Config` stands beside it; the length contract is `positions`."""

    def positions(self, frames: int) -> int:
        """Q positions for F valid encoder frames."""

    def __call__(self, states_BFD: Tensor) -> Tensor:
        """[B, F, D] -> [B, Q, E] with Q = positions(F)."""


class ProjectorType(Protocol):
    """A projector class: `Config` and a constructor."""

    Config: type[AnyConfig]

    def __call__(self, config: Any, width_in: int, width_out: int) -> Projector: ...


PROJECTORS: Table[ProjectorType] = Table("projector", {"mlp_stack": "speechkd.models.projectors.mlp_stack:MlpStack"})
