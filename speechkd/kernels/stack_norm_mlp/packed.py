"""Only the rows that are read, and a backward with one matrix product less where the frames need no gradient.

LayerNorm followed by a linear layer: autograd multiplies by W once more to find gamma's gradient, though nobody wants the frames'. With
x^ the normalised row, y = W (gamma x^ + beta) + b and G the gradient of y, one product with x^ says it all (exact, not an approximation):

    P = G' x^,   dW = P gamma + sum_r G_r beta',   dgamma = sum_h P W,   dbeta = W' sum_r G_r
Kept for backward are the rows and the hidden layer before its activation: x^ and the activation are computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm, linear, silu

from speechkd.kernels.autocast import autocast_on
from speechkd.kernels.logits import wide
from speechkd.kernels.stack_norm_mlp.rows import scattered, stacked_rows

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Elements of a weight's gradient that are unfolded at a time: on a CPU they stay in a core's cache, on a GPU few launches do"""


def stack_norm_mlp(
    frames_BFC: Tensor,
    stack: int,
    in_weight_HS: Tensor,
    in_bias_H: Tensor | None,
    out_weight_DH: Tensor,
    out_bias_D: Tensor | None,
    norm_weight_S: Tensor | None,
    norm_bias_S: Tensor | None,
    norm_eps: float,
    rows_R: Tensor | None,
) -> Tensor:
    """See the package."""
    x_RS = stacked_rows(frames_BFC, stack, rows_R)
    if norm_weight_S is None or norm_bias_S is None:
        pre_RH = linear(x_RS, in_weight_HS, in_bias_H)
    else:
        pre_RH = norm_linear(x_RS, in_weight_HS, in_bias_H, norm_weight_S, norm_bias_S, norm_eps)
    out_RD = silu_linear(pre_RH, out_weight_DH, out_bias_D)
    return scattered(out_RD, rows_R, frames_BFC.shape[0], -(-frames_BFC.shape[1] // stack))


def norm_linear(
    x_RS: Tensor, weight_HS: Tensor, bias_H: Tensor | None, gamma_C: Tensor, beta_C: Tensor, eps: float, real_Rk: Tensor | None = None
) -> Tensor:
    """LayerNorm over each C of the S values (C divides S), then a linear layer: [R, S] -> [R, H].

    `real_Rk` boolean, k = S / C: groups of C values that are False enter the linear layer as zeros. None: all are real.
    """
    if x_RS.requires_grad or autocast_on(x_RS):
        return linear(_normed(x_RS, gamma_C, beta_C, eps, real_Rk, gamma_C.shape[0]), weight_HS, bias_H)
    out: Tensor = _NormLinear.apply(x_RS, weight_HS, bias_H, gamma_C, beta_C, eps, real_Rk)
    return out


def silu_linear(pre_RH: Tensor, weight_DH: Tensor, bias_D: Tensor | None) -> Tensor:
    """SiLU, then a linear layer, [R, H] -> [R, D]; keeps only `pre_RH` for backward."""
    if autocast_on(pre_RH):
        return linear(silu(pre_RH), weight_DH, bias_D)
    out: Tensor = _SiluLinear.apply(pre_RH, weight_DH, bias_D)
    return out


def _normed(x_RS: Tensor, gamma_C: Tensor | None, beta_C: Tensor | None, eps: float, real_Rk: Tensor | None, width: int) -> Tensor:
    """LayerNorm of each group of `width` values, zeros where a group is not real."""
    out_RkC = layer_norm(x_RS.unflatten(1, (-1, width)), (width,), gamma_C, beta_C, eps)
    return (out_RkC if real_Rk is None else out_RkC * real_Rk.unsqueeze(2)).flatten(1)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RS: Tensor,
        weight_HS: Tensor,
        bias_H: Tensor | None,
        gamma_C: Tensor,
        beta_C: Tensor,
        eps: float,
        real_Rk: Tensor | None,
    ) -> Tensor:
        # the shape is asked of gamma, never of what is kept of it: a parameter has none while ZeRO-3 has it partitioned
        ctx.eps, ctx.width = eps, gamma_C.shape[0]
        ctx.save_for_backward(x_RS, weight_HS, gamma_C, beta_C, real_Rk)
        return linear(_normed(x_RS, gamma_C, beta_C, eps, real_Rk, ctx.width), weight_HS, bias_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor | None, ...]:
        x_RS, weight_HS, gamma_C, beta_C, real_Rk = ctx.saved_tensors
        grad_HS = grad_RH.t() @ _normed(x_RS, None, None, ctx.eps, real_Rk, ctx.width)
        sum_H = wide(grad_RH).sum(0)
        if real_Rk is None:
            sum_Hk = sum_H.unsqueeze(1).expand(-1, x_RS.shape[1] // ctx.width)
        else:
            sum_Hk = wide(grad_RH).t() @ real_Rk.to(sum_H.dtype)
        grad_gamma_C, grad_beta_C = unfold(grad_HS, sum_Hk, weight_HS, gamma_C, beta_C)
        grad_bias_H = sum_H.to(grad_RH.dtype) if ctx.needs_input_grad[2] else None
        return None, grad_HS, grad_bias_H, grad_gamma_C.to(gamma_C.dtype), grad_beta_C.to(beta_C.dtype), None, None


def unfold(grad_HS: Tensor, sum_Hk: Tensor, weight_HS: Tensor, gamma_C: Tensor, beta_C: Tensor) -> tuple[Tensor, Tensor]:
    """Turns P into dW in place; returns dgamma and dbeta, wide."""
    H, k, C = grad_HS.shape[0], sum_Hk.shape[1], gamma_C.shape[0]
    grad_gamma_C, grad_beta_C = torch.zeros_like(wide(gamma_C)), torch.zeros_like(wide(beta_C))
    step = max(1, BLOCK.get(grad_HS.device.type, BLOCK["cuda"]) // max(grad_HS.shape[1], 1))
    for start in range(0, H, step):
        part = slice(start, start + step)
        p_HkC, sum_Hk1 = grad_HS[part].view(-1, k, C), sum_Hk[part].unsqueeze(2)
        weight_HkC = wide(weight_HS[part]).view(-1, k, C)
        grad_gamma_C += (wide(p_HkC) * weight_HkC).sum((0, 1))
        grad_beta_C += (weight_HkC * sum_Hk1).sum((0, 1))
        p_HkC.mul_(gamma_C).addcmul_(sum_Hk1.to(p_HkC.dtype), beta_C)
    return grad_gamma_C, grad_beta_C


class _SiluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_RH: Tensor, weight_DH: Tensor, bias_D: Tensor | None) -> Tensor:
        ctx.save_for_backward(pre_RH, weight_DH)
        return linear(silu(pre_RH), weight_DH, bias_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        pre_RH, weight_DH = ctx.saved_tensors
        needs_pre, needs_weight, needs_bias = ctx.needs_input_grad
        grad_DH = grad_RD.t() @ silu(pre_RH) if needs_weight else None
        grad_RH = torch.ops.aten.silu_backward(grad_RD @ weight_DH, pre_RH) if needs_pre else None
        return grad_RH, grad_DH, grad_RD.sum(0) if needs_bias else None
