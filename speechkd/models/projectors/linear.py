"""Linear projector: averages neighbouring frames, then one Linear, as in Qwen2-Audio and PL-Distill (arXiv 2602.01547).

    S = W mean(h_1 .. h_k) + b,   k = 2
The layer is called `linear`, as in those models, so that a LoRA target names it. Encoders of speech LLMs pool by themselves
(`models/encoder_families.py`): theirs has k = 1, one behind a Whisper encoder k = 2.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.stack_norm_mlp.rows import scattered, stacked_rows
from speechkd.models.projectors import ProjectorConfig


class LinearConfig(ProjectorConfig):
    """`pool` frames become one position."""

    SUMS_LAYERS: ClassVar[bool] = True
    kind: Literal["linear"] = "linear"
    pool: int = Field(2, ge=1)
    init_from: str | None = None
    """folder or hub id of a speech LLM whose own projector training starts from"""

    def starts_from(self) -> str | None:
        """The block's `init_from`."""
        return self.init_from


class LinearProjector(nn.Module):
    """Mean of k frames, Linear. A last partial group is the mean of the frames that it has, never dropped: Q = ceil(F / k)."""

    Config = LinearConfig

    def __init__(self, config: LinearConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.pool, self.init_from = config.pool, config.init_from
        self.linear = nn.Linear(width_in, width_out)

    def positions(self, frames: int) -> int:
        """Q for F frames: ceil(F / k)."""
        return -(-frames // self.pool)

    def forward(self, states_BFD: Tensor | LayerStates, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, ceil(F / k), E], zero where nobody reads."""
        B, F, D = states_BFD.shape
        Q = self.positions(F)
        rows_RS = stacked_rows(states_BFD, self.pool, read_A).to(self.linear.weight.dtype)
        pooled_RD = rows_RS.unflatten(1, (self.pool, D)).sum(1)
        place_R = torch.arange(B * Q, device=states_BFD.device) if read_A is None else read_A
        size_R = (F - place_R % Q * self.pool).clamp(max=self.pool)
        return scattered(self.linear(pooled_RD / size_R.unsqueeze(1).to(pooled_RD.dtype)), read_A, B, Q)
