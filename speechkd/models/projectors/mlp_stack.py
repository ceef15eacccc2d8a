"""MLP projector: stacks k frames, then one hidden layer with SiLU, R^{k D} -> R^{hidden} -> R^{E} (wong26a section 3: k = 15).

The hidden width is not given in the paper; 6,400 is what the same team's MERaLiON-2 uses. The optional input LayerNorm is
theirs too (off by default: the paper does not name it). Ultravox's projector is `norm: rms`, `gated: true`, `post_norm: rms`.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from speechkd.kernels import stack_norm_mlp
from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.models.projectors import ProjectorConfig


class MlpStackConfig(ProjectorConfig):
    """`stack` frames become one position."""

    SUMS_LAYERS: ClassVar[bool] = True
    kind: Literal["mlp_stack"] = "mlp_stack"
    stack: int = Field(15, ge=1)
    hidden: int = Field(6400, ge=1)
    norm: bool | Literal["rms"] = False
    """of the stacked frames: true is LayerNorm, rms RMSNorm"""
    gated: bool = False
    """the first layer is twice as wide: half of it, times SiLU of the other half, is the hidden layer (SwiGLU)"""
    post_norm: bool | Literal["rms"] = False
    """of the output, as `norm`"""


class MlpStack(nn.Module):
    """Stack k frames, Linear, SiLU or SwiGLU, Linear. The last partial stack is padded with zeros, never dropped: Q = ceil(F / k).

    All weights belong to this one module, so that ZeRO-3 gathers them together, once.
    """

    Config = MlpStackConfig

    def __init__(self, config: MlpStackConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.stack = config.stack
        self.gated = config.gated
        stacked, first = width_in * config.stack, (1 + config.gated) * config.hidden
        self.norm_weight, self.norm_bias = _norm(config.norm, stacked)
        self.in_weight = nn.Parameter(torch.empty(first, stacked))
        self.in_bias = nn.Parameter(torch.zeros(first))
        self.out_weight = nn.Parameter(torch.empty(width_out, config.hidden))
        self.out_bias = nn.Parameter(torch.zeros(width_out))
        self.post_weight, self.post_bias = _norm(config.post_norm, width_out)
        for weight in (self.in_weight, self.out_weight):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as nn.Linear

    def positions(self, frames: int) -> int:
        """Q for F frames: ceil(F / k)."""
        return -(-frames // self.stack)

    def forward(self, states_BFD: Tensor | LayerStates, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, ceil(F / k), E], zero where nobody reads."""
        return stack_norm_mlp(
            states_BFD,
            self.stack,
            self.in_weight,
            self.in_bias,
            self.out_weight,
            self.out_bias,
            self.norm_weight,
            self.norm_bias,
            rows_R=read_A,
            gated=self.gated,
            post_weight_D=self.post_weight,
            post_bias_D=self.post_bias,
        )


def _norm(kind: bool | str, width: int) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Weight and bias: of a LayerNorm for true, of an RMSNorm (no bias) for `rms`."""
    return nn.Parameter(torch.ones(width)) if kind else None, nn.Parameter(torch.zeros(width)) if kind is True else None
