"""The packed form with all that is between its matrix products in Triton kernels, and the norm's weights folded into the first.

W (gamma x^ + beta) + b = (W gamma) x^ + (W beta + b): x^ is written once, in the pass that sums layers, stacks and normalises, and backward
asks neither for the stacked frames nor for the activation's output. Gradients of W, gamma and beta come from one product with x^, as in
`norm_linear`; the gradient of a layer sum's weights from one more pass over the states. The norm behind the MLP is torch's own kernel.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from speechkd.kernels.autocast import autocast_on
from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.layer_sum.triton_stack_norm import Normed, Prologue, Stacks, stack_norm, stack_norm_backward_, stacks
from speechkd.kernels.stack_norm_mlp import packed
from speechkd.kernels.stack_norm_mlp.act_linear import act_linear as packed_act_linear
from speechkd.kernels.stack_norm_mlp.act_linear import halves
from speechkd.kernels.stack_norm_mlp.mlp import Mlp
from speechkd.kernels.stack_norm_mlp.norm import Norm
from speechkd.kernels.stack_norm_mlp.norm_linear import sums, unfold
from speechkd.kernels.stack_norm_mlp.rows import real_frames, scattered
from speechkd.kernels.stack_norm_mlp.triton_activation import activate, activate_backward_


def stack_norm_mlp(frames_BFC: Tensor | LayerStates, stack: int, mlp: Mlp, rows_R: Tensor | None) -> Tensor:
    """See the package."""
    pre_RG = stack_norm_linear(frames_BFC, stack, mlp.in_weight_HS, mlp.in_bias_H, mlp.norm, rows_R)
    out_RD = act_linear(pre_RG, mlp.out_weight_DH, mlp.out_bias_D, None, mlp.gated, owned=True)
    out_RD = out_RD if mlp.post_norm is None else mlp.post_norm.of(out_RD)
    return scattered(out_RD, rows_R, frames_BFC.shape[0], -(-frames_BFC.shape[1] // stack))


def stack_norm_linear(
    frames_BFC: Tensor | LayerStates, stack: int, weight_HS: Tensor, bias_H: Tensor | None, norm: Norm | None, rows_R: Tensor | None
) -> Tensor:
    """See the package. It is the packed form under autocast, for states that want a gradient, and for a stack beyond one program."""
    given = frames_BFC if isinstance(frames_BFC, LayerStates) else LayerStates([frames_BFC], frames_BFC)
    mixed = given is frames_BFC
    states = [state_BFC.contiguous() for state_BFC in given.states_LBFC]
    B, F, C = given.shape
    where_R = torch.arange(B * -(-F // stack), device=given.device) if rows_R is None else rows_R
    kind: Literal["none", "layer", "rms"] = "none" if norm is None else norm.kind
    prologue = Prologue(
        [state_BFC.detach() for state_BFC in states],
        given.weights_L.detach() if mixed else None,
        stacks(where_R, max(F, 1), stack),
        stack,
        kind,
        1e-5 if norm is None else norm.eps,
        per_frame=norm is not None and norm.width < stack * C,
        normalise=given.normalise,
    )
    trained = mixed and torch.is_grad_enabled() and any(state_BFC.requires_grad for state_BFC in states)
    if autocast_on(states[0]) or trained or not prologue.fits:
        return packed.stack_norm_linear(frames_BFC, stack, weight_HS, bias_H, norm, rows_R)
    real_Rk = real_frames(frames_BFC, stack, rows_R) if prologue.per_frame else None
    gamma_C, beta_C = (None, None) if norm is None else norm[:2]
    source = given.weights_L if mixed else states[0]
    out: Tensor = _StackNormLinear.apply(prologue, where_R, real_Rk, source, weight_HS, bias_H, gamma_C, beta_C)
    return out


def act_linear(
    pre_RG: Tensor, weight_DH: Tensor, bias_D: Tensor | None, up_RH: Tensor | None = None, gated: bool = False, owned: bool = False
) -> Tensor:
    """See the package."""
    if autocast_on(pre_RG):
        return packed_act_linear(pre_RG, weight_DH, bias_D, up_RH, gated)
    out: Tensor = _ActLinear.apply(pre_RG, up_RH, weight_DH, bias_D, gated, owned)
    return out


def _folded(weight_HS: Tensor, gamma_C: Tensor | None) -> Tensor:
    return weight_HS if gamma_C is None else (weight_HS.unflatten(1, (-1, len(gamma_C))) * gamma_C).flatten(1)


class _StackNormLinear(torch.autograd.Function):
    """`source`: what gets the gradient of the rows, the frames or the weights of the layers' sum."""

    @staticmethod
    def forward(
        ctx: Any,
        prologue: Prologue,
        where_R: Tensor,
        real_Rk: Tensor | None,
        source: Tensor,
        weight_HS: Tensor,
        bias_H: Tensor | None,
        gamma_C: Tensor | None,
        beta_C: Tensor | None,
    ) -> Tensor:
        normed = stack_norm(prologue, weight_HS.dtype)
        shift_Hk = None if beta_C is None else weight_HS.unflatten(1, (-1, len(beta_C))) @ beta_C
        if shift_Hk is not None and real_Rk is None:
            bias_H = shift_Hk.sum(1) if bias_H is None else shift_Hk.sum(1) + bias_H
        z_RH = linear(normed.x_hat_RS, _folded(weight_HS, gamma_C), bias_H)
        if shift_Hk is not None and real_Rk is not None:
            z_RH += real_Rk.to(z_RH.dtype) @ shift_Hk.t()  # where a frame is missing, its beta is, too
        # frames without a sum are asked for their shape alone
        ctx.prologue, ctx.shape, ctx.dtype = prologue._replace(states=(), weights_L=None), prologue.states[0].shape, source.dtype
        states = () if prologue.weights_L is None else prologue.states
        ctx.save_for_backward(where_R, real_Rk, *normed, weight_HS, gamma_C, beta_C, prologue.weights_L, *states)
        ctx.width = None if gamma_C is None else len(gamma_C)
        return z_RH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor | None, ...]:
        where_R, real_Rk, x_hat_RS, rstd_X, weight_HS, gamma_C, beta_C, weights_L, *states = ctx.saved_tensors
        needs_source, needs_weight, needs_bias, needs_gamma, needs_beta = ctx.needs_input_grad[3:]
        sum_H, sum_Hk = sums(grad_RH, 1 if ctx.width is None else x_hat_RS.shape[1] // ctx.width, real_Rk)
        grad_HS = grad_source = grad_gamma_C = grad_beta_C = None
        if needs_weight or needs_gamma or needs_beta:
            grad_HS = grad_RH.t() @ x_hat_RS
            if gamma_C is not None:
                grad_gamma_C, grad_beta_C = unfold(grad_HS, sum_Hk, weight_HS, gamma_C, beta_C)
        if needs_source:
            grad_RS = (grad_RH @ _folded(weight_HS, gamma_C)).contiguous()
            normed = Normed(x_hat_RS, rstd_X)
            if weights_L is None:
                grad_source = _frames(ctx, where_R, grad_RS, normed).to(ctx.dtype)
            else:
                prologue = ctx.prologue._replace(states=states, weights_L=weights_L)
                share_L = stack_norm_backward_(grad_RS, normed, prologue, want_input=False)
                assert share_L is not None
                grad_source = share_L.to(ctx.dtype)
        return None, None, None, grad_source, grad_HS, sum_H.to(weight_HS.dtype) if needs_bias else None, grad_gamma_C, grad_beta_C


def _frames(ctx: Any, where_R: Tensor, grad_RS: Tensor, normed: Normed) -> Tensor:
    """d / d frames [B, F, C] from d / d x^."""
    B, F, C = ctx.shape
    nothing = torch.empty(0, 0, C, dtype=grad_RS.dtype, device=grad_RS.device)  # without a sum the frames themselves are not read
    prologue = ctx.prologue._replace(states=[nothing], rows=Stacks(where_R, where_R))
    stack_norm_backward_(grad_RS, normed, prologue, want_input=True)
    positions = -(-F // prologue.stack)
    return grad_RS.new_zeros(B * positions, grad_RS.shape[1]).index_copy_(0, where_R, grad_RS).view(B, -1, C)[:, :F]


class _ActLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre_RG: Tensor, up_RH: Tensor | None, weight_DH: Tensor, bias_D: Tensor | None, gated: bool, owned: bool
    ) -> Tensor:
        ctx.gated, ctx.owned, ctx.spent = gated, owned, False
        ctx.save_for_backward(pre_RG, up_RH, weight_DH)
        gate_RH, other_RH = halves(pre_RG, up_RH, gated)
        return linear(activate(gate_RH, None, "silu", other_RH), weight_DH, bias_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError("backward a second time through stack_norm_mlp: its buffers hold gradients now; take impl: packed")
        ctx.spent = ctx.owned
        pre_RG, up_RH, weight_DH = ctx.saved_tensors
        _, _, needs_weight, needs_bias, _, _ = ctx.needs_input_grad
        if not ctx.owned:
            pre_RG, up_RH = pre_RG.clone(), None if up_RH is None else up_RH.clone()
        act_RH = grad_RD @ weight_DH
        gate_RH, other_RH = halves(pre_RG, up_RH, ctx.gated)
        activate_backward_(act_RH, gate_RH, None, "silu", other_RH)
        grad_DH = grad_RD.t() @ act_RH if needs_weight else None
        return pre_RG, up_RH, grad_DH, grad_RD.sum(0) if needs_bias else None, None, None
