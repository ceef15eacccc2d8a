"""Cross attention of few queries without keys and values: their projections are absorbed into queries and pooled states (exact).

    q_h . (W_k h_m) = (W_k' q_h) . h_m,      sum_m a_m (W_v h_m + b) = W_v (sum_m a_m h_m) + b     since attention weights sum to 1
As in DeepSeek-V2's latent attention (arXiv 2405.04434). Projecting every state costs 2 M D W; absorbed, Q queries cost 2 Q D W and as many
scores as before, but D long instead of W / heads: cheaper as long as there are fewer queries than a head is wide.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from speechkd.kernels.logits import wide


def absorbing_is_cheaper(queries: int, memory: int, width: int, width_memory: int, heads: int) -> bool:
    """Whether the absorbed form of one clip's cross attention has fewer multiplications than projecting keys and values."""
    projected = 2 * memory * width_memory * width + 2 * queries * memory * width
    absorbed = 2 * queries * width_memory * width + 2 * heads * queries * memory * width_memory
    return absorbed < projected


def attend(keys_BXD: Tensor, memory_BMD: Tensor, mask_B1M: Tensor | None) -> Tensor:
    """softmax(keys memory' + mask) memory, [B, X, D].

    By plain products: scores are few, and torch's fused attention takes no heads this wide on a GPU and, on a CPU, makes the memory's
    gradient even where nobody wants it (2.2 times as slow, measured).
    """
    scores_BXM = keys_BXD @ memory_BMD.mT
    if mask_B1M is not None:
        scores_BXM = scores_BXM + mask_B1M
    return torch.softmax(wide(scores_BXM), -1).to(memory_BMD.dtype) @ memory_BMD


class MemoryLinear(nn.Linear):
    """Projection of memory to keys or values, [.., D] -> [.., W], that can also serve the absorbed form.

    Both happen inside its own forward, where ZeRO-3 has its weight whole. Parameters are those of a Linear.
    """

    def forward(self, x: Tensor, of: Literal["memory", "queries", "pooled"] = "memory") -> Tensor:
        """`memory`: as a Linear. `queries`: [B, H, Q, d] -> [B, H, Q, D] by W's transpose. `pooled`: [B, H, Q, D] -> [B, H, Q, d]."""
        if of == "memory":
            return super().forward(x)
        B, H, Q, _ = x.shape
        out_HXd = _PerHead.apply(x.transpose(0, 1).flatten(1, 2), self.weight, of == "pooled")
        out: Tensor = out_HXd.unflatten(1, (B, Q)).transpose(0, 1)
        return out if self.bias is None else out + self.bias.view(H, 1, -1)


class _PerHead(torch.autograd.Function):
    """x_h W_h, or x_h W_h' with `transposed`, for each head's rows of W. Keeps the parameter itself, not a view that would outlive it."""

    @staticmethod
    def forward(ctx: Any, x_HXY: Tensor, weight_WD: Tensor, transposed: bool) -> Tensor:
        ctx.transposed = transposed
        ctx.save_for_backward(x_HXY, weight_WD)
        weight_HdD = weight_WD.unflatten(0, (x_HXY.shape[0], -1))
        return torch.bmm(x_HXY, weight_HdD.mT if transposed else weight_HdD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_HXZ: Tensor) -> tuple[Tensor | None, ...]:
        x_HXY, weight_WD = ctx.saved_tensors
        weight_HdD = weight_WD.unflatten(0, (x_HXY.shape[0], -1))
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad_x = torch.bmm(grad_HXZ, weight_HdD if ctx.transposed else weight_HdD.mT) if needs_x else None
        first, second = (grad_HXZ, x_HXY) if ctx.transposed else (x_HXY, grad_HXZ)
        return grad_x, torch.bmm(first.mT, second).flatten(0, 1) if needs_weight else None, None
