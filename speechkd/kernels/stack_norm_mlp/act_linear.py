"""SiLU, perhaps with a gate, and a linear layer as one: backward computes the activation again, so that it is not kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from speechkd.kernels.autocast import autocast_on


def activated(pre_RG: Tensor, up_RH: Tensor | None, gated: bool) -> Tensor:
    """[R, H]: silu(pre), times `up` where there is one; `gated`: the first half of pre times silu of the second."""
    gate_RH, up_RH = halves(pre_RG, up_RH, gated)
    return silu(gate_RH) if up_RH is None else silu(gate_RH) * up_RH


def halves(pre_RG: Tensor, up_RH: Tensor | None, gated: bool) -> tuple[Tensor, Tensor | None]:
    """(what goes through SiLU, what it is multiplied with)."""
    if not gated:
        return pre_RG, up_RH
    up_RH, gate_RH = pre_RG.chunk(2, 1)
    return gate_RH, up_RH


def act_linear(
    pre_RG: Tensor, weight_DH: Tensor, bias_D: Tensor | None, up_RH: Tensor | None = None, gated: bool = False, owned: bool = False
) -> Tensor:
    """`activated`, then a linear layer, [R, D]; keeps its inputs alone. `owned` is for `triton_mlp`: here nothing is overwritten."""
    if autocast_on(pre_RG):
        return linear(activated(pre_RG, up_RH, gated), weight_DH, bias_D)
    out: Tensor = _ActLinear.apply(pre_RG, up_RH, weight_DH, bias_D, gated)
    return out


class _ActLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_RG: Tensor, up_RH: Tensor | None, weight_DH: Tensor, bias_D: Tensor | None, gated: bool) -> Tensor:
        ctx.gated = gated
        ctx.save_for_backward(pre_RG, up_RH, weight_DH)
        return linear(activated(pre_RG, up_RH, gated), weight_DH, bias_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        pre_RG, up_RH, weight_DH = ctx.saved_tensors
        needs_pre, needs_up, needs_weight, needs_bias, _ = ctx.needs_input_grad
        gate_RH, other_RH = halves(pre_RG, up_RH, ctx.gated)
        act_RH = silu(gate_RH)
        grad_DH = (grad_RD.t() @ (act_RH if other_RH is None else act_RH * other_RH)) if needs_weight else None
        if not (needs_pre or needs_up):
            return None, None, grad_DH, grad_RD.sum(0) if needs_bias else None, None
        grad_RH, grad_up = grad_RD @ weight_DH, None
        if other_RH is not None:
            grad_up = act_RH.mul_(grad_RH)
            grad_RH.mul_(other_RH)
        grad_pre = torch.ops.aten.silu_backward(grad_RH, gate_RH)
        if ctx.gated and grad_up is not None:
            grad_pre, grad_up = torch.cat([grad_up, grad_pre], 1), None
        return grad_pre, grad_up, grad_DH, grad_RD.sum(0) if needs_bias else None, None
