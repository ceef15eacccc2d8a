"""Frozen head, tile by tile of the vocabulary: two matrix products a tile, which stays in the cache between them.

Where a teacher names K ids, all others get one factor of their own softmax (`rows.py`). That softmax can be summed up as attention is
without its matrix: for tiles V_1, V_2, ... with m the largest logit so far and s the sum of exp(z - m),

    s <- s exp(m_old - m) + sum_{v in tile} exp(z_v - m)        A <- A exp(m_old - m) + sum_{v in tile} exp(z_v - m) W_v
and A / s is the mean of the head's rows under it (online softmax: Milakov and Gimelshein, arXiv 1805.02867; the sum with it: Dao et al.,
arXiv 2205.14135). So the weight is read twice, whatever the number of rows, and memory is a tile and [T, D], not [T, V]. The K ids, left
out of the tiles, are added at the end with exact factors, so that nothing cancels where student and teacher agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from speechkd.kernels.autocast import autocast_on
from speechkd.kernels.chunks import rows_per_chunk
from speechkd.kernels.linear_topk_kl.rows import kept_and_rest
from speechkd.kernels.linear_topk_kl.target import Target
from speechkd.kernels.logits import FLOOR, Head, soft_cap_, sum_kept, wide

TILE_ELEMENTS = 1 << 20
"""Logits of a tile, 4 MiB in float32"""
ROWS = 1024
"""Rows that share the tiles: more would make them narrow"""
DUMMY = 16
"""Columns behind a tile: what is written for ids of other tiles lands there"""


class Rest(NamedTuple):
    """A head's rows, seen from the ids that the teacher names."""

    z_TK: Tensor
    """logits of the named ids"""
    slope_TK: Tensor | None
    """derivative of the soft cap there"""
    lse_T: Tensor
    """log-sum-exp of the logits of all other ids"""
    mean_TD: Tensor | None
    """mean of the head's rows under the softmax over the other ids, times the soft cap's derivative"""


def obstacle(first_input: object) -> str | None:
    """Why the tiled form cannot run, or None."""
    if not isinstance(first_input, Head):
        return "it is given logits, not a head"
    if first_input.weight_VD.requires_grad and torch.is_grad_enabled():
        return "the head's weight wants a gradient"
    if first_input.weight_VD.device.type != "cpu":
        return "it is for a CPU's cache"
    return "autocast chooses the products' precision" if autocast_on(first_input.hidden_TD) else None


def slower(first_input: object) -> str | None:
    """Why the chunked form is faster here, or None. Measured with 512 rows: 32,000 ids 0.89 against 0.92 of the products alone, 151,936 ids
    1.01 against 0.84, where two chunks starve the products (tests/bench/KERNELS.md)."""
    assert isinstance(first_input, Head)
    rows = len(first_input.hidden_TD)
    most = rows_per_chunk(first_input.vocabulary, first_input.hidden_TD.device)
    return f"{rows} rows fit in one chunk" if rows <= most else None


def linear_topk_kl(student: Head, target: Target, temperature: float, mask_T: Tensor | None) -> Tensor:
    """See the package; rows that a mask leaves out are zeroed."""
    want_grad = student.hidden_TD.requires_grad and torch.is_grad_enabled()
    total: Tensor = _TiledTotal.apply(
        student.hidden_TD, student.weight_VD.detach(), target, temperature, student.softcap, mask_T, want_grad
    )
    return total


class _TiledTotal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target: Target,
        temperature: float,
        softcap: float | None,
        mask_T: Tensor | None,
        want_grad: bool,
    ) -> Tensor:
        total = torch.zeros((), dtype=wide(hidden_TD[:0]).dtype, device=hidden_TD.device)
        grad_TD = torch.empty_like(hidden_TD) if want_grad else None
        for start in range(0, len(hidden_TD), ROWS):
            part = slice(start, start + ROWS)
            named = target.rows(part)
            rest = _rest(hidden_TD[part], weight_VD, named.ids_TK, temperature, softcap, want_grad)
            value_T, grad_TK, outside_T = kept_and_rest(rest.z_TK, rest.lse_T, named, want_grad)
            total += sum_kept(value_T, None if mask_T is None else mask_T[part])
            if grad_TD is None or rest.mean_TD is None or grad_TK is None or outside_T is None:
                continue
            sum_TD = rest.mean_TD.mul_((outside_T / temperature).unsqueeze(1))
            grad_TK = grad_TK.div_(temperature) if rest.slope_TK is None else grad_TK.div_(temperature).mul_(rest.slope_TK)
            _add_named(sum_TD, grad_TK, named.ids_TK, weight_VD)
            grad_TD[part] = sum_TD
        if grad_TD is not None:
            ctx.save_for_backward(grad_TD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TD,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_TD * grad_total.to(grad_TD.dtype), None, None, None, None, None, None


def _rest(hidden_TD: Tensor, weight_VD: Tensor, ids_TK: Tensor, temperature: float, softcap: float | None, want_grad: bool) -> Rest:
    (T, D), K = hidden_TD.shape, ids_TK.shape[1]
    like = wide(hidden_TD[:0])
    z_TK, most_T1, sum_T1 = like.new_empty(T, K), like.new_full((T, 1), FLOOR), like.new_zeros(T, 1)
    slope_TK = None if softcap is None else torch.empty_like(z_TK)
    mean_TD = like.new_zeros(T, D) if want_grad else None
    for tile_ND, ids_TN, z_TX in _tiles(hidden_TD, weight_VD, ids_TK):
        N = len(tile_ND)
        z_TN = z_TX[:, :N]
        slope_TN = soft_cap_(z_TN, softcap, want_grad)
        if temperature != 1.0:
            z_TN.div_(temperature)
        inside_TK = ids_TN < N
        z_TK = torch.where(inside_TK, z_TX.gather(1, ids_TN), z_TK)
        if slope_TK is not None and slope_TN is not None:
            slope_TK = torch.where(inside_TK, slope_TN.gather(1, ids_TN.clamp(max=N - 1)), slope_TK)
        z_TX.scatter_(1, ids_TN, FLOOR)
        above_T1 = torch.maximum(most_T1, z_TN.amax(1, keepdim=True))
        fade_T1 = (most_T1 - above_T1).exp_()
        most_T1 = above_T1
        exp_TN = z_TN.sub_(most_T1).exp_()
        sum_T1.mul_(fade_T1).add_(exp_TN.sum(1, keepdim=True))
        if mean_TD is not None:
            exp_TN = exp_TN if slope_TN is None else exp_TN.mul_(slope_TN)
            mean_TD.mul_(fade_T1)
            if tile_ND.dtype == mean_TD.dtype:
                mean_TD.addmm_(exp_TN, tile_ND)
            else:
                mean_TD += exp_TN.to(tile_ND.dtype) @ tile_ND
    if mean_TD is not None:
        mean_TD.div_(sum_T1)
    return Rest(z_TK, slope_TK, (sum_T1.log() + most_T1).squeeze(1), mean_TD)


def _tiles(hidden_TD: Tensor, weight_VD: Tensor, ids_TK: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows of the head, each named id's column in the tile or its dummy column, wide logits with dummy columns) of every tile."""
    T, V = len(hidden_TD), len(weight_VD)
    width = min(V, max(TILE_ELEMENTS // T, 64))
    logits_TX = hidden_TD.new_zeros(T, width + DUMMY)
    z_TX = logits_TX if logits_TX.dtype == wide(logits_TX[:0]).dtype else wide(torch.empty_like(logits_TX))
    for start in range(0, V, width):
        tile_ND = weight_VD[start : start + width]
        N = len(tile_ND)
        torch.mm(hidden_TD, tile_ND.t(), out=logits_TX[:, :N])
        if z_TX is not logits_TX:
            z_TX[:, :N].copy_(logits_TX[:, :N])
        ids_TN = ids_TK - start
        yield tile_ND, torch.where((ids_TN >= 0) & (ids_TN < N), ids_TN, N), z_TX


def _add_named(sum_TD: Tensor, factor_TK: Tensor, ids_TK: Tensor, weight_VD: Tensor) -> None:
    """Add sum_k factor_k W_k to each row, a few rows at a time."""
    step = max(1, TILE_ELEMENTS // max(1, ids_TK.shape[1] * weight_VD.shape[1]))
    for start in range(0, len(sum_TD), step):
        part = slice(start, start + step)
        named_XKD = wide(weight_VD[ids_TK[part]])
        sum_TD[part] += (factor_TK[part].unsqueeze(1) @ named_XKD).squeeze(1)
