"""Stacked frames as rows: all of them, or those that are read, and back to padded positions."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def stack_frames(frames_BFC: Tensor, stack: int) -> Tensor:
    """[B, F, C] to [B, ceil(F / stack), stack * C]; the last partial stack is filled up with zeros."""
    B, F, C = frames_BFC.shape
    return pad(frames_BFC, (0, 0, 0, -F % stack)).reshape(B, -(-F // stack), stack * C)


def stacked_rows(frames_BFC: Tensor, stack: int, rows_R: Tensor | None) -> Tensor:
    """[R, stack * C]: the stacks at flat positions `rows_R` of [B, ceil(F / stack)]; None: all, in order."""
    x_XS = stack_frames(frames_BFC, stack).flatten(0, 1)
    return x_XS if rows_R is None else x_XS.index_select(0, rows_R)


def scattered(out_RD: Tensor, rows_R: Tensor | None, B: int, Q: int) -> Tensor:
    """The inverse: [R, D] to [B, Q, D], zero where no row belongs."""
    D = out_RD.shape[1]
    return (out_RD if rows_R is None else out_RD.new_zeros(B * Q, D).index_copy(0, rows_R, out_RD)).view(B, Q, D)
