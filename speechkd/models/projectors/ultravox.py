"""Ultravox's projector (fixie-ai/ultravox, `UltravoxProjector`; `UltravoxFeedForwardProjector` of vLLM), exactly.

    x = RMSNorm([h_1 .. h_k]);  (u, g) = W_1 x;  z = u * SiLU(g);  S = W_2 RMSNorm(z)  (`norm: mid`)  or  RMSNorm(W_2 z)  (`norm: post`)
No biases; norms start at 0.4. k = 8 and 4,096 outputs of W_1 are its defaults. `mid` is its version 0.5 and later, `post` earlier.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from speechkd.kernels import stack_norm_mlp
from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.stack_norm_mlp import stack_norm_linear
from speechkd.kernels.stack_norm_mlp.norm import Norm
from speechkd.kernels.stack_norm_mlp.rows import scattered
from speechkd.models.projectors import ProjectorConfig

EPS = 1e-6
"""Of all norms, as there"""


class UltravoxConfig(ProjectorConfig):
    """`stack` frames become one position."""

    SUMS_LAYERS: ClassVar[bool] = True
    kind: Literal["ultravox"] = "ultravox"
    stack: int = Field(8, ge=1)
    hidden: int = Field(4096, ge=2, multiple_of=2)
    """outputs of the first layer, its `hidden_size`; half of them gate the other half"""
    norm: Literal["mid", "post"] = "mid"
    """where the second norm stands: before the second layer, or behind it"""
    norm_init: float = Field(0.4, gt=0, allow_inf_nan=False)


class UltravoxProjector(nn.Module):
    """Stack k frames, RMSNorm, Linear, SwiGLU, RMSNorm and Linear or the other way round; no biases. Q = ceil(F / k).

    All weights belong to this one module, so that ZeRO-3 gathers them together, once.
    """

    Config = UltravoxConfig

    def __init__(self, config: UltravoxConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.stack, self.norm = config.stack, config.norm
        stacked, half = width_in * config.stack, config.hidden // 2
        self.ln_pre = nn.Parameter(torch.full((stacked,), config.norm_init))
        self.linear_1 = nn.Parameter(torch.empty(config.hidden, stacked))
        self.linear_2 = nn.Parameter(torch.empty(width_out, half))
        self.ln_second = nn.Parameter(torch.full((half if config.norm == "mid" else width_out,), config.norm_init))
        for weight in (self.linear_1, self.linear_2):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as nn.Linear

    def positions(self, frames: int) -> int:
        """Q for F frames: ceil(F / k)."""
        return -(-frames // self.stack)

    def published(self) -> dict[str, Tensor]:
        """The weights by their names in Ultravox's checkpoints."""
        weights = {"ln_pre": self.ln_pre, "linear_1": self.linear_1, "linear_2": self.linear_2, f"ln_{self.norm}": self.ln_second}
        return {f"{name}.weight": weight.detach() for name, weight in weights.items()}

    def forward(self, states_BFD: Tensor | LayerStates, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, ceil(F / k), E], zero where nobody reads."""
        if self.norm == "post":
            return stack_norm_mlp(
                states_BFD,
                self.stack,
                self.linear_1,
                None,
                self.linear_2,
                None,
                self.ln_pre,
                norm_eps=EPS,
                rows_R=read_A,
                gated=True,
                post_weight_D=self.ln_second,
            )
        pre_RH = stack_norm_linear(states_BFD, self.stack, self.linear_1, None, Norm(self.ln_pre, None, EPS), read_A)
        up_RH, gate_RH = pre_RH.chunk(2, -1)
        z_RH = rms_norm(up_RH * silu(gate_RH), self.ln_second.shape, self.ln_second, EPS)
        return scattered(linear(z_RH, self.linear_2), read_A, states_BFD.shape[0], self.positions(states_BFD.shape[1]))
