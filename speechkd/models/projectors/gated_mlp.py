"""Gated MLP projector: stacks frames, then a gated MLP, as in the released code of MERaLiON-2 (by the authors of wong26a).

    x = LayerNorm(h) per frame;  z = SiLU(W_in [x_1 .. x_k]);  S = W_out ( SiLU(W_g z) * (W_p z) )
k = 15, every hidden width 5 encoder widths (6,400 of Whisper-large-v3). The plain form of wong26a itself is `mlp_stack`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.stack_norm_mlp import act_linear, stack_norm_linear
from speechkd.kernels.stack_norm_mlp.norm import Norm
from speechkd.kernels.stack_norm_mlp.rows import real_frames, scattered, stacked_rows
from speechkd.models.projectors import ProjectorConfig


class GatedMlpConfig(ProjectorConfig):
    """`stack` frames become one position."""

    SUMS_LAYERS: ClassVar[bool] = True
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
    """Linear layer that can stack and normalise its rows' frames itself, with a FrameNorm's weights."""

    def forward(self, x: Any, stack: int = 0, norm: Norm | None = None, read_A: Tensor | None = None) -> Tensor:
        """[R, S] -> [R, H]; with `norm` x is frames or `LayerStates`, as `stack_norm_linear` takes them."""
        return super().forward(x) if norm is None else stack_norm_linear(x, stack, self.weight, self.bias, norm, read_A)


class ActLinear(nn.Linear):
    """Linear layer that applies SiLU, and a gate, to what it is given, and does not keep the outcome for backward."""

    def forward(self, x: Tensor, up: Tensor | None = None, activate: bool = False) -> Tensor:
        """[R, H] -> [R, D]; with `activate` of SiLU(x), times `up` where it is given, which backward overwrites then."""
        if not activate:
            return super().forward(x)
        return act_linear(x, self.weight, self.bias, up, owned=up is not None)


class GatedMlp(nn.Module):
    """LayerNorm, stack k frames, Linear, SiLU, gate, Linear. The last partial stack is padded, never dropped: Q = ceil(F / k)."""

    Config = GatedMlpConfig

    def __init__(self, config: GatedMlpConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.stack = config.stack
        hidden = config.hidden or 5 * width_in
        self.norm = FrameNorm(width_in)
        self.linear_in = FrameNormLinear(width_in * config.stack, hidden)
        self.gate = ActLinear(hidden, hidden)
        self.pool = ActLinear(hidden, hidden)
        self.linear_out = ActLinear(hidden, width_out)

    def positions(self, frames: int) -> int:
        """Q for F frames: ceil(F / k)."""
        return -(-frames // self.stack)

    def forward(self, states_BFD: Tensor | LayerStates, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, ceil(F / k), E], zero where nobody reads."""
        pre_RH = self._first(states_BFD, read_A)
        gate_RH, pool_RH = (_activated(layer, pre_RH) for layer in (self.gate, self.pool))
        out_RE = _activated(self.linear_out, gate_RH, pool_RH)
        return scattered(out_RE, read_A, states_BFD.shape[0], self.positions(states_BFD.shape[1]))

    def _first(self, states_BFD: Tensor | LayerStates, read_A: Tensor | None) -> Tensor:
        """Sum of layers, stack, norm and first layer: as one, or one after the other under LoRA."""
        if isinstance(self.linear_in, FrameNormLinear):
            weight_D, bias_D = self.norm(None)
            folded: Tensor = self.linear_in(states_BFD, self.stack, Norm(weight_D, bias_D, self.norm.eps), read_A)
            return folded
        frames_RkD = stacked_rows(states_BFD, self.stack, read_A).unflatten(1, (self.stack, -1))
        normed_RkD = self.norm(frames_RkD.to(self.norm.weight.dtype))
        real_Rk = real_frames(states_BFD, self.stack, read_A)
        out: Tensor = self.linear_in((normed_RkD if real_Rk is None else normed_RkD * real_Rk.unsqueeze(2)).flatten(1))
        return out


def _activated(layer: nn.Module, x_RH: Tensor, up_RH: Tensor | None = None) -> Tensor:
    """The layer on SiLU(x), times `up` where it is given; LoRA's own part needs the outcome itself."""
    if isinstance(layer, ActLinear):
        out: Tensor = layer(x_RH, up_RH, True)
    else:
        out = layer(silu(x_RH) if up_RH is None else silu(x_RH) * up_RH)
    return out
