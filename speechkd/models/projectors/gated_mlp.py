"""Gated MLP projector: stacks frames, then a gated MLP, as in the released code of MERaLiON-2 (by the authors of wong26a).

    x = LayerNorm(h) per frame;  z = SiLU(W_in [x_1 .. x_k]);  S = W_out ( SiLU(W_g z) * (W_p z) )
k = 15, every hidden width 5 encoder widths (6,400 of Whisper-large-v3). The plain form of wong26a itself is `mlp_stack`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from speechkd.kernels.stack_norm_mlp.packed import norm_linear
from speechkd.kernels.stack_norm_mlp.rows import scattered, stacked_rows
from speechkd.models.projectors import ProjectorConfig


class GatedMlpConfig(ProjectorConfig):
    """`stack` frames become one position."""

    kind: Literal["gated_mlp"] = "gated_mlp"
    stack: int = Field(15, ge=1)
    hidden: int | None = Field(None, ge=1)
    """None: 5 encoder widths"""


class FrameNorm(nn.LayerNorm):
    """LayerNorm that can hand its weights on, from inside its own forward: nowhere else are they whole under ZeRO-3."""

    def forward(self, states: Tensor | None) -> Any:
        """Normalised states; for None, copies of weight and bias."""
        return (self.weight.clone(), self.bias.clone()) if states is None else super().forward(states)


class FrameNormLinear(nn.Linear):
    """Linear layer that can normalise its rows' frames itself, with a FrameNorm's weights."""

    def forward(self, x: Tensor, norm_C: tuple[Tensor, Tensor] | None = None, eps: float = 0.0, real_Rk: Tensor | None = None) -> Tensor:
        """[R, S] -> [R, H]; with `norm_C` (weight, bias) frames are normalised first, those that `real_Rk` denies are zeros."""
        return super().forward(x) if norm_C is None else norm_linear(x, self.weight, self.bias, *norm_C, eps, real_Rk)


class GatedMlp(nn.Module):
    """LayerNorm, stack k frames, Linear, SiLU, gate, Linear. The last partial stack is padded, never dropped: Q = ceil(F / k)."""

    Config = GatedMlpConfig

    def __init__(self, config: GatedMlpConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.stack = config.stack
        hidden = config.hidden or 5 * width_in
        self.norm = FrameNorm(width_in)
        self.linear_in = FrameNormLinear(width_in * config.stack, hidden)
        self.gate = nn.Linear(hidden, hidden)
        self.pool = nn.Linear(hidden, hidden)
        self.linear_out = nn.Linear(hidden, width_out)

    def positions(self, frames: int) -> int:
        """Q for F frames: ceil(F / k)."""
        return -(-frames // self.stack)

    def forward(self, states_BFD: Tensor, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, ceil(F / k), E], zero where nobody reads."""
        B, F, D = states_BFD.shape
        Q = self.positions(F)
        frames_RkD = stacked_rows(states_BFD.to(self.norm.weight.dtype), self.stack, read_A).unflatten(1, (self.stack, D))
        real_Rk = None
        if F % self.stack:
            place_R = torch.arange(B * Q, device=states_BFD.device) if read_A is None else read_A
            real_Rk = (place_R % Q * self.stack).unsqueeze(1) + torch.arange(self.stack, device=states_BFD.device) < F
        z_RH = silu(self._first(frames_RkD, real_Rk))
        return scattered(self.linear_out(silu(self.gate(z_RH)) * self.pool(z_RH)), read_A, B, Q)

    def _first(self, frames_RkD: Tensor, real_Rk: Tensor | None) -> Tensor:
        """Norm and first layer: as one where that saves a product (`norm_linear`), one after the other under LoRA."""
        if isinstance(self.linear_in, FrameNormLinear) and not frames_RkD.requires_grad:
            folded: Tensor = self.linear_in(frames_RkD.flatten(1), self.norm(None), self.norm.eps, real_Rk)
            return folded
        normed_RkD = self.norm(frames_RkD)
        out: Tensor = self.linear_in((normed_RkD if real_Rk is None else normed_RkD * real_Rk.unsqueeze(2)).flatten(1))
        return out
