"""Stacked frames as rows: all of them, or those that are read, and back to padded positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechkd.kernels.layer_sum import layer_sum
from speechkd.kernels.layer_sum.states import LayerStates


def stack_frames(frames_BFC: Tensor, stack: int) -> Tensor:
    """[B, F, C] to [B, ceil(F / stack), stack * C]; the last partial stack is filled up with zeros."""
    B, F, C = frames_BFC.shape
    return pad(frames_BFC, (0, 0, 0, -F % stack)).reshape(B, -(-F // stack), stack * C)


def stacked_rows(frames_BFC: Tensor | LayerStates, stack: int, rows_R: Tensor | None) -> Tensor:
    """[R, stack * C]: the stacks at flat positions `rows_R` of [B, ceil(F / stack)]; None: all, in order.

    Of `LayerStates` the frames of these rows are summed, and no others.
    """
    if isinstance(frames_BFC, LayerStates):
        return _summed_rows(frames_BFC, stack, rows_R)
    x_XS = stack_frames(frames_BFC, stack).flatten(0, 1)
    return x_XS if rows_R is None else x_XS.index_select(0, rows_R)


def _summed_rows(states: LayerStates, stack: int, rows_R: Tensor | None) -> Tensor:
    _, F, C = states.shape
    if rows_R is None:
        return stack_frames(layer_sum(*states), stack).flatten(0, 1)
    place_Rk = places(rows_R, F, stack)
    first_R1 = (rows_R // -(-F // stack) * F).unsqueeze(1)
    if F % stack == 0:
        return layer_sum(*states, frames_X=(first_R1 + place_Rk).flatten()).view(-1, stack * C)
    behind_Rk = place_Rk >= F
    x_XC = layer_sum(*states, frames_X=(first_R1 + place_Rk.clamp(max=F - 1)).flatten())
    return x_XC.masked_fill(behind_Rk.view(-1, 1), 0.0).view(-1, stack * C)


def places(rows_R: Tensor, window: int, stack: int) -> Tensor:
    """[R, k]: which frames of its utterance each row stacks; those of `window` and above are not there."""
    first_R1 = (rows_R % -(-window // stack) * stack).unsqueeze(1)
    return first_R1 + torch.arange(stack, device=rows_R.device)


def real_frames(frames_BFC: Tensor | LayerStates, stack: int, rows_R: Tensor | None) -> Tensor | None:
    """[R, k], False where a row's frame lies behind the window; None where none does."""
    B, F, _ = frames_BFC.shape
    if F % stack == 0:
        return None
    rows_R = torch.arange(B * -(-F // stack), device=frames_BFC.device) if rows_R is None else rows_R
    return places(rows_R, F, stack) < F


def scattered(out_RD: Tensor, rows_R: Tensor | None, B: int, Q: int) -> Tensor:
    """The inverse: [R, D] to [B, Q, D], zero where no row belongs."""
    D = out_RD.shape[1]
    return (out_RD if rows_R is None else out_RD.new_zeros(B * Q, D).index_copy(0, rows_R, out_RD)).view(B, Q, D)
