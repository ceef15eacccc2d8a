"""Gated MLP projector: stacks frames, then a gated MLP, as in the released code of MERaLiON-2 (by the authors of wong26a).

    x = LayerNorm(h) per frame;  z = SiLU(W_in [x_1 .. x_k]);  S = W_out ( SiLU(W_g z) * (W_p z) )
k = 15, every hidden width 5 encoder widths (6,400 of Whisper-large-v3). The plain form of wong26a itself is `mlp_stack`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from speechkd.kernels.stack_norm_mlp.reference import stack_frames
from speechkd.models.projectors import ProjectorConfig


class GatedMlpConfig(ProjectorConfig):
    """`stack` frames become one position."""

    kind: Literal["gated_mlp"] = "gated_mlp"
    stack: int = Field(15, ge=1)
    hidden: int | None = Field(None, ge=1)
    """None: 5 encoder widths"""


class GatedMlp(nn.Module):
    """LayerNorm, stack k frames, Linear, SiLU, gate, Linear. The last partial stack is padded, never dropped: Q = ceil(F / k)."""

    Config = GatedMlpConfig

    def __init__(self, config: GatedMlpConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.stack = config.stack
        hidden = config.hidden or 5 * width_in
        self.norm = nn.LayerNorm(width_in)
        self.linear_in = nn.Linear(width_in * config.stack, hidden)
        self.gate = nn.Linear(hidden, hidden)
        self.pool = nn.Linear(hidden, hidden)
        self.linear_out = nn.Linear(hidden, width_out)

    def positions(self, frames: int) -> int:
        """Q for F frames: ceil(F / k)."""
        return -(-frames // self.stack)

    def forward(self, states_BFD: Tensor) -> Tensor:
        """[B, F, D] -> [B, ceil(F / k), E]."""
        states_BFD = self.norm(states_BFD.to(self.norm.weight.dtype))
        z_BQH = silu(self.linear_in(stack_frames(states_BFD, self.stack)))
        out: Tensor = self.linear_out(silu(self.gate(z_BQH)) * self.pool(z_BQH))
        return out
