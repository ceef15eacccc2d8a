"""Value and gradient together, on a CPU utterance by utterance at its own length.

With centred rows X, Y of unit norm and, in Gram form, K = X X', M = Y Y' (xy = <K, M>, xx = |K|^2, yy = |M|^2):

    CKA = xy / sqrt(xx yy),   dCKA/dX = 2 (M / sqrt(xx yy) - CKA K / xx) X
One product where autograd needs two, and neither K nor M is kept; in feature form M X = Y (Y'X) and K X = X (X'X). The columns of this
gradient sum to zero as those of X do, so centring passes it on as it is. On other devices the batch stays padded: only the device knows
the lengths, and waiting for it costs more than padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechkd.kernels.weighted_cka.reference import gram_is_cheaper, normalised_weights


class _Want(NamedTuple):
    x: bool
    y: bool


def weighted_cka(x_BTD: Tensor, y_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor, mode: str, form: str) -> Tensor:
    """See the package."""
    want = _Want(*(given.requires_grad and torch.is_grad_enabled() for given in (x_BTD, y_BTE)))
    out_B: Tensor = _Cka.apply(x_BTD, y_BTE, weights_BT, mask_BT, mode, form, want)
    return out_B


class _Cka(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, y_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor, mode: str, form: str, want: _Want) -> Tensor:
        grads = [torch.zeros_like(given) if wanted else None for given, wanted in zip((x_BTD, y_BTE), want, strict=True)]
        dtype = torch.float64 if torch.float64 in (x_BTD.dtype, y_BTE.dtype, weights_BT.dtype) else torch.float32
        cka_B = torch.zeros(x_BTD.shape[0], dtype=dtype, device=x_BTD.device)
        for part in _parts(mask_BT):
            x, y, weights = (given[part].to(dtype) for given in (x_BTD, y_BTE, weights_BT))
            value_B, *found = _value_and_gradients(x, y, weights, mask_BT[part], mode, form, want)
            cka_B[part[0]] = value_B
            for whole, grad in zip(grads, found, strict=True):
                if whole is not None and grad is not None:
                    whole[part] = grad.to(whole.dtype)
        ctx.save_for_backward(*grads)
        return cka_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if grad is None else grad * grad_B.view(-1, 1, 1).to(grad.dtype) for grad in ctx.saved_tensors]
        return *found, None, None, None, None, None


def _parts(mask_BT: Tensor) -> list[tuple[slice, slice]]:
    """(utterances, positions) to be computed together; positions behind an utterance's last valid one are left out on a CPU."""
    if mask_BT.device.type != "cpu":
        return [(slice(None), slice(None))]
    ends = (mask_BT * torch.arange(1, mask_BT.shape[1] + 1)).amax(1).tolist() if mask_BT.numel() else []
    return [(slice(b, b + 1), slice(0, end)) for b, end in enumerate(ends) if end]


def _value_and_gradients(
    x_BTD: Tensor, y_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor, mode: str, form: str, want: _Want
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    valid_BT1 = mask_BT.unsqueeze(2)
    full = mask_BT.device.type == "cpu" and bool(mask_BT.all())
    w_BT1 = normalised_weights(weights_BT, valid_BT1)
    factor_BT1 = w_BT1 if mode == "pre_w" else w_BT1.sqrt()
    mean_by_BT1 = w_BT1 if mode == "weighted_hsic" else valid_BT1.to(w_BT1.dtype)
    x_BTD, y_BTE = (_centred(given, factor_BT1, mean_by_BT1, None if full else valid_BT1, mode) for given in (x_BTD, y_BTE))
    x_inv_B11, y_inv_B11 = (_inverse(rows.square().sum((1, 2), keepdim=True)) for rows in (x_BTD, y_BTE))
    gram = gram_is_cheaper(form, x_BTD, y_BTE)
    if gram:
        k, m = (x_BTD @ x_BTD.mT).mul_(x_inv_B11), (y_BTE @ y_BTE.mT).mul_(y_inv_B11)
        xy_B11, xx_B11, yy_B11 = _dot(k, m), _dot(k, k), _dot(m, m)
    else:
        c = (x_BTD.mT @ y_BTE).mul_((x_inv_B11 * y_inv_B11).sqrt())
        k, m = (x_BTD.mT @ x_BTD).mul_(x_inv_B11), (y_BTE.mT @ y_BTE).mul_(y_inv_B11)
        xy_B11, xx_B11, yy_B11 = _dot(c, c), _dot(k, k), _dot(m, m)
    # one valid row has no geometry, whatever rounding left of it
    both_B11 = (_inverse(xx_B11) * _inverse(yy_B11)).sqrt() * (valid_BT1.sum(1, keepdim=True) >= 2)
    cka_B11 = xy_B11 * both_B11
    own_x_B11, own_y_B11 = cka_B11 * _inverse(xx_B11), cka_B11 * _inverse(yy_B11)
    grad_x = grad_y = None
    if gram:
        if want.x:
            grad_x = (m * both_B11).addcmul_(k, own_x_B11, value=-1.0).mul_(2.0 * x_inv_B11 * factor_BT1) @ x_BTD
        if want.y:
            grad_y = (k * both_B11).addcmul_(m, own_y_B11, value=-1.0).mul_(2.0 * y_inv_B11 * factor_BT1) @ y_BTE
    else:
        cross_B11 = both_B11 * (x_inv_B11 * y_inv_B11).sqrt()
        if want.x:
            grad_x = (y_BTE @ (c.mT * cross_B11) - x_BTD @ (k * (own_x_B11 * x_inv_B11))).mul_(2.0 * factor_BT1)
        if want.y:
            grad_y = (x_BTD @ (c * cross_B11) - y_BTE @ (m * (own_y_B11 * y_inv_B11))).mul_(2.0 * factor_BT1)
    return cka_B11.view(-1), grad_x, grad_y


def _centred(x_BTD: Tensor, factor_BT1: Tensor, mean_by_BT1: Tensor, valid_BT1: Tensor | None, mode: str) -> Tensor:
    """Rows, weighted and centred in the mode's order, not in place; `valid_BT1` None: all are valid."""
    x_BTD = x_BTD if valid_BT1 is None else x_BTD.masked_fill(~valid_BT1, 0.0)
    share_B1T = (mean_by_BT1 * _inverse(mean_by_BT1.sum(1, keepdim=True))).mT
    if mode == "weighted_hsic":
        return (x_BTD - share_B1T @ x_BTD).mul_(factor_BT1)
    x_BTD = x_BTD * factor_BT1
    x_BTD -= share_B1T @ x_BTD
    return x_BTD if valid_BT1 is None else x_BTD.masked_fill_(~valid_BT1, 0.0)


def _dot(a_BXY: Tensor, b_BXY: Tensor) -> Tensor:
    return (a_BXY * b_BXY).sum((1, 2), keepdim=True)


def _inverse(value: Tensor) -> Tensor:
    """1 / value, and 0 for 0."""
    return torch.where(value > torch.finfo(value.dtype).tiny, 1.0 / value, torch.zeros_like(value))
