"""A norm and a linear layer as one, with a backward of one matrix product less where the rows need no gradient.

A norm followed by a linear layer: autograd multiplies by W once more to find gamma's gradient, though nobody wants the rows'. With x^ the
normalised row, y = W (gamma x^ + beta) + b and G the gradient of y, one product with x^ says it all (exact, not an approximation):

    P = G' x^,   dW = P gamma + sum_r G_r beta',   dgamma = sum_h P W,   dbeta = W' sum_r G_r
Without beta that is RMSNorm. Kept for backward are the rows alone: x^ is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from speechkd.kernels.autocast import autocast_on
from speechkd.kernels.logits import wide
from speechkd.kernels.stack_norm_mlp.norm import Norm, standardised

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Elements of a weight's gradient that are unfolded at a time: on a CPU they stay in a core's cache, on a GPU few launches do"""


def norm_linear(x_RS: Tensor, weight_HS: Tensor, bias_H: Tensor | None, norm: Norm, real_Rk: Tensor | None = None) -> Tensor:
    """A norm over each C of the S values (C divides S), then a linear layer: [R, S] -> [R, H].

    `real_Rk` boolean, k = S / C: groups of C values that are False enter the linear layer as zeros. None: all are real.
    """
    if x_RS.requires_grad or autocast_on(x_RS):
        return linear(_zeroed(norm.of(x_RS.unflatten(1, (-1, norm.width))), real_Rk), weight_HS, bias_H)
    out: Tensor = _NormLinear.apply(x_RS, weight_HS, bias_H, *norm, real_Rk)
    return out


def _zeroed(x_RkC: Tensor, real_Rk: Tensor | None) -> Tensor:
    return (x_RkC if real_Rk is None else x_RkC * real_Rk.unsqueeze(2)).flatten(1)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RS: Tensor,
        weight_HS: Tensor,
        bias_H: Tensor | None,
        gamma_C: Tensor,
        beta_C: Tensor | None,
        eps: float,
        real_Rk: Tensor | None,
    ) -> Tensor:
        # the shape is asked of gamma, never of what is kept of it: a parameter has none while ZeRO-3 has it partitioned
        ctx.eps, ctx.width, ctx.kind = eps, gamma_C.shape[0], Norm(gamma_C, beta_C).kind
        ctx.save_for_backward(x_RS, weight_HS, gamma_C, beta_C, real_Rk)
        normed_RkC = Norm(gamma_C, beta_C, eps).of(x_RS.unflatten(1, (-1, ctx.width)))
        return linear(_zeroed(normed_RkC, real_Rk), weight_HS, bias_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor | None, ...]:
        x_RS, weight_HS, gamma_C, beta_C, real_Rk = ctx.saved_tensors
        grad_HS = grad_RH.t() @ _zeroed(standardised(x_RS.unflatten(1, (-1, ctx.width)), ctx.kind, ctx.eps), real_Rk)
        sum_H, sum_Hk = sums(grad_RH, x_RS.shape[1] // ctx.width, real_Rk)
        grad_gamma_C, grad_beta_C = unfold(grad_HS, sum_Hk, weight_HS, gamma_C, beta_C)
        grad_bias_H = sum_H.to(grad_RH.dtype) if ctx.needs_input_grad[2] else None
        return None, grad_HS, grad_bias_H, grad_gamma_C, grad_beta_C, None, None


def sums(grad_RH: Tensor, k: int, real_Rk: Tensor | None) -> tuple[Tensor, Tensor]:
    """([H], [H, k]), wide: the rows' gradients summed, and summed over the rows whose k-th group is real."""
    sum_H = grad_RH.sum(0, dtype=wide(grad_RH[:0]).dtype)
    if real_Rk is None:
        return sum_H, sum_H.unsqueeze(1).expand(-1, k)
    return sum_H, wide(grad_RH).t() @ real_Rk.to(sum_H.dtype)


def unfold(grad_HS: Tensor, sum_Hk: Tensor, weight_HS: Tensor, gamma_C: Tensor, beta_C: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Turns P into dW in place; returns dgamma and dbeta in their own types."""
    H, k, C = grad_HS.shape[0], sum_Hk.shape[1], gamma_C.shape[0]
    grad_gamma_C = torch.zeros_like(wide(gamma_C))
    grad_beta_C = None if beta_C is None else torch.zeros_like(wide(beta_C))
    step = max(1, BLOCK.get(grad_HS.device.type, BLOCK["cuda"]) // max(grad_HS.shape[1], 1))
    for start in range(0, H, step):
        part = slice(start, start + step)
        p_HkC, sum_Hk1 = grad_HS[part].view(-1, k, C), sum_Hk[part].unsqueeze(2)
        weight_HkC = wide(weight_HS[part]).view(-1, k, C)
        grad_gamma_C += (wide(p_HkC) * weight_HkC).sum((0, 1))
        p_HkC.mul_(gamma_C)
        if beta_C is not None and grad_beta_C is not None:
            grad_beta_C += (weight_HkC * sum_Hk1).sum((0, 1))
            p_HkC.addcmul_(sum_Hk1.to(p_HkC.dtype), beta_C)
    return grad_gamma_C.to(gamma_C.dtype), None if beta_C is None or grad_beta_C is None else grad_beta_C.to(beta_C.dtype)
