"""The packed form with all that is between its matrix products in three Triton kernels, and the norm's weights folded into the first.

W (gamma x^ + beta) + b = (W gamma) x^ + (W beta + b): x^ is written once, and backward asks neither for the stacked frames nor for the
activation's output. Gradients of W, gamma and beta come from one product with x^, as in `packed`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from speechkd.kernels.autocast import autocast_on
from speechkd.kernels.stack_norm_mlp import packed
from speechkd.kernels.stack_norm_mlp.rows import scattered
from speechkd.kernels.stack_norm_mlp.triton_activation import activate, activate_backward_
from speechkd.kernels.stack_norm_mlp.triton_stack_norm import Normed, Prologue, Stacks, stack_norm, stack_norm_backward_, stacks


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
    """See the package. Under autocast, and where a stack is wider than one program holds, it is the packed form."""
    given = in_weight_HS, in_bias_H, out_weight_DH, out_bias_D, norm_weight_S, norm_bias_S
    B, F, _ = frames_BFC.shape
    positions = -(-F // stack)
    where_R = torch.arange(B * positions, device=frames_BFC.device) if rows_R is None else rows_R
    frames_BFC = frames_BFC.contiguous()
    norm = "none" if norm_weight_S is None else "layer"
    prologue = Prologue([frames_BFC.detach()], None, stacks(where_R, max(F, 1), stack), stack, norm, norm_eps)  # type: ignore[arg-type]
    if autocast_on(frames_BFC) or not prologue.fits:
        return packed.stack_norm_mlp(frames_BFC, stack, *given, norm_eps, rows_R)
    out_RD: Tensor = _StackNormMlp.apply(prologue, where_R, frames_BFC, *given)
    return scattered(out_RD, rows_R, B, positions)


def _folded(weight_HS: Tensor, bias_H: Tensor | None, gamma_S: Tensor | None, beta_S: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """First weight and bias with the norm's own folded in."""
    if gamma_S is None or beta_S is None:
        return weight_HS, bias_H
    shift_H = weight_HS @ beta_S
    return weight_HS * gamma_S, shift_H if bias_H is None else shift_H + bias_H


class _StackNormMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        prologue: Prologue,
        where_R: Tensor,
        frames_BFC: Tensor,
        weight_HS: Tensor,
        bias_H: Tensor | None,
        out_weight_DH: Tensor,
        out_bias_D: Tensor | None,
        gamma_S: Tensor | None,
        beta_S: Tensor | None,
    ) -> Tensor:
        normed = stack_norm(prologue, weight_HS.dtype)
        folded_HS, shift_H = _folded(weight_HS, bias_H, gamma_S, beta_S)
        z_RH = normed.x_hat_RS @ folded_HS.t()
        # kept: the rows as they enter the first product and what comes out of it; frames are asked for their shape alone
        ctx.stack, ctx.norm, ctx.shape, ctx.spent = prologue.stack, prologue.norm, frames_BFC.shape, False
        ctx.save_for_backward(where_R, *normed, z_RH, shift_H, weight_HS, out_weight_DH, gamma_S, beta_S)
        return linear(activate(z_RH, shift_H, "silu"), out_weight_DH, out_bias_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError("backward a second time through stack_norm_mlp: its buffers hold gradients now; take impl: packed")
        ctx.spent = True
        where_R, x_hat_RS, rstd_R, z_RH, shift_H, weight_HS, out_weight_DH, gamma_S, beta_S = ctx.saved_tensors
        needs_frames, needs_weight, needs_bias, needs_out_weight, needs_out_bias, needs_gamma, needs_beta = ctx.needs_input_grad[2:]
        grad_RD = grad_RD.contiguous()
        a_RH = grad_RD @ out_weight_DH
        activate_backward_(a_RH, z_RH, shift_H, "silu")
        grad_RH, sum_H = z_RH, z_RH.sum(0, dtype=torch.float32)
        grads: dict[str, Tensor | None] = dict.fromkeys(("frames", "weight", "gamma", "beta"))
        if needs_weight or needs_gamma or needs_beta:
            grads["weight"] = grad_HS = grad_RH.t() @ x_hat_RS
            if gamma_S is not None:
                gamma, beta = packed.unfold(grad_HS, sum_H.unsqueeze(1), weight_HS, gamma_S, beta_S)
                grads["gamma"], grads["beta"] = gamma.to(gamma_S.dtype), beta.to(beta_S.dtype)
        if needs_frames:
            grads["frames"] = _frames(ctx, where_R, grad_RH @ _folded(weight_HS, None, gamma_S, beta_S)[0], Normed(x_hat_RS, rstd_R))
        return (
            None,
            None,
            grads["frames"],
            grads["weight"],
            sum_H.to(weight_HS.dtype) if needs_bias else None,
            grad_RD.t() @ a_RH if needs_out_weight else None,
            grad_RD.sum(0) if needs_out_bias else None,
            grads["gamma"],
            grads["beta"],
        )


def _frames(ctx: Any, where_R: Tensor, grad_RS: Tensor, normed: Normed) -> Tensor:
    """d / d frames [B, F, C] from d / d x^."""
    B, F, C = ctx.shape
    grad_RS = grad_RS.contiguous()
    nothing = torch.empty(0, 0, C, dtype=grad_RS.dtype, device=grad_RS.device)  # without a mix the frames themselves are not read
    stack_norm_backward_(grad_RS, normed, Prologue([nothing], None, Stacks(where_R, where_R), ctx.stack, ctx.norm), want_input=True)
    positions = -(-F // ctx.stack)
    return grad_RS.new_zeros(B * positions, grad_RS.shape[1]).index_copy_(0, where_R, grad_RS).view(B, -1, C)[:, :F]
