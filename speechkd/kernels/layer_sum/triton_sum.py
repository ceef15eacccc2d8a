"""All layers in one kernel: every state is read once forward and once backward, nothing is kept but the states themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechkd.kernels.layer_sum.triton_stack_norm import Normed, Prologue, Stacks, stack_norm, stack_norm_backward_, stacks


def layer_sum(states_LBFD: Sequence[Tensor], weights_L: Tensor, normalise: bool, frames_X: Tensor | None) -> Tensor:
    """See the package; the states get no gradient."""
    out: Tensor = _LayerSum.apply(weights_L, normalise, frames_X, *states_LBFD)
    return out


class _LayerSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_L: Tensor, normalise: bool, frames_X: Tensor | None, *states_LBFD: Tensor) -> Tensor:
        states = [states_BFD.contiguous() for states_BFD in states_LBFD]
        B, F, D = states[0].shape
        rows = stacks(torch.arange(B * F, device=states[0].device) if frames_X is None else frames_X, max(F, 1), 1)
        ctx.normalise = normalise
        ctx.save_for_backward(weights_L, *rows, *states)
        prologue = Prologue(states, weights_L.detach(), rows, 1, normalise=normalise)
        out_XD = stack_norm(prologue, states[0].dtype).x_hat_RS
        return out_XD.view(B, F, D) if frames_X is None else out_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BFD: Tensor) -> tuple[Tensor | None, ...]:
        weights_L, starts_R, frames_R, *states = ctx.saved_tensors
        prologue = Prologue(states, weights_L, Stacks(starts_R, frames_R), 1, normalise=ctx.normalise)
        grad_RD = grad_BFD.contiguous().view(-1, grad_BFD.shape[-1])
        normed = Normed(grad_RD, torch.ones(0, device=grad_RD.device))  # without a norm nothing of forward is needed
        grad_L = stack_norm_backward_(grad_RD, normed, prologue, want_input=False)
        assert grad_L is not None
        return grad_L.to(weights_L.dtype), None, None, *(None for _ in states)
