"""MLP projector: stacks k frames, then one hidden layer with SiLU, R^{k D} -> R^{hidden} -> R^{E} (wong26a section 3: k = 15).

The hidden width is not given in the paper; 6,400 is what the same team's MERaLiON-2 uses. The optional input LayerNorm is
theirs too (off by default: the paper does not name it).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from speechkd.kernels import stack_norm_mlp
from speechkd.models.projectors import ProjectorConfig


class MlpStackConfig(ProjectorConfig):
    """`stack` frames become one position."""

    kind: Literal["mlp_stack"] = "mlp_stack"
    stack: int = Field(15, ge=1)
    hidden: int = Field(6400, ge=1)
    norm: bool = False


class MlpStack(nn.Module):
    """Stack k frames, Linear, SiLU, Linear. The last partial stack is padded with zeros, never dropped: Q = ceil(F / k).

    All weights belong to this one module, so that ZeRO-3 gathers them together, once.
    """

    Config = MlpStackConfig

    def __init__(self, config: MlpStackConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.stack = config.stack
        stacked = width_in * config.stack
        self.norm_weight = nn.Parameter(torch.ones(stacked)) if config.norm else None
        self.norm_bias = nn.Parameter(torch.zeros(stacked)) if config.norm else None
        self.in_weight = nn.Parameter(torch.empty(config.hidden, stacked))
        self.in_bias = nn.Parameter(torch.zeros(config.hidden))
        self.out_weight = nn.Parameter(torch.empty(width_out, config.hidden))
        self.out_bias = nn.Parameter(torch.zeros(width_out))
        for weight in (self.in_weight, self.out_weight):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as nn.Linear

    def positions(self, frames: int) -> int:
        """Q for F frames: ceil(F / k)."""
        return -(-frames // self.stack)

    def forward(self, states_BFD: Tensor, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, ceil(F / k), E], zero where nobody reads."""
        layers = (self.in_weight, self.in_bias, self.out_weight, self.out_bias)
        norm = (self.norm_weight, self.norm_bias)
        return stack_norm_mlp(states_BFD.to(self.in_weight.dtype), self.stack, *layers, *norm, rows_R=read_A)
