"""Reference: centred features, three batched products, no T x T centring matrix.

CKA(X, Y) = <XX', YY'> / (|XX'| |YY'|) = |X'Y|^2 / (|X'X| |Y'Y|), Frobenius, on centred rows (Kornblith et al., arXiv 1905.00414).
"""

from __future__ import annotations

from torch import Tensor

from speechkd.kernels.logits import wide

TINY = 1e-30
"""Squares of centred, unit-norm features are at least 1 / rank or exactly 0; this only keeps 0 / 0 away."""


def weighted_cka(x_BTD: Tensor, y_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor, mode: str, form: str) -> Tensor:
    """See the package."""
    valid_BT1 = mask_BT.unsqueeze(2)
    w_BT1 = normalised_weights(weights_BT, valid_BT1)
    x_BTD, y_BTE = _centred(x_BTD, w_BT1, valid_BT1, mode), _centred(y_BTE, w_BT1, valid_BT1, mode)
    if gram_is_cheaper(form, x_BTD, y_BTE):
        gram_x_BTT, gram_y_BTT = x_BTD @ x_BTD.mT, y_BTE @ y_BTE.mT
        xy_B, xx_B, yy_B = (gram_x_BTT * gram_y_BTT).sum((1, 2)), _squares(gram_x_BTT), _squares(gram_y_BTT)
    else:
        xy_B, xx_B, yy_B = _squares(x_BTD.mT @ y_BTE), _squares(x_BTD.mT @ x_BTD), _squares(y_BTE.mT @ y_BTE)
    return xy_B / (xx_B.clamp(min=TINY).sqrt() * yy_B.clamp(min=TINY).sqrt())


def normalised_weights(weights_BT: Tensor, valid_BT1: Tensor) -> Tensor:
    """[B, T, 1], wide, of mean 1 over valid positions: softmax weights of a long utterance are small enough to lose digits."""
    w_BT1 = wide(weights_BT).unsqueeze(2).masked_fill(~valid_BT1, 0.0)
    return w_BT1 * (valid_BT1.sum(dim=1, keepdim=True) / w_BT1.sum(dim=1, keepdim=True).clamp(min=TINY))


def gram_is_cheaper(form: str, x_BTD: Tensor, y_BTE: Tensor) -> bool:
    """Whether `form` is `gram`, or `auto` and the T x T products have fewer operations than the D x E ones."""
    T, D, E = x_BTD.shape[1], x_BTD.shape[2], y_BTE.shape[2]
    return form == "gram" or (form == "auto" and T * (D + E) <= D * D + E * E + D * E)


def _centred(x_BTD: Tensor, w_BT1: Tensor, valid_BT1: Tensor, mode: str) -> Tensor:
    x_BTD = wide(x_BTD).masked_fill(~valid_BT1, 0.0)
    if mode == "weighted_hsic":
        x_BTD = x_BTD - _mean(x_BTD * w_BT1, w_BT1)
        x_BTD = x_BTD * w_BT1.sqrt()
    else:
        x_BTD = x_BTD * (w_BT1 if mode == "pre_w" else w_BT1.sqrt())
        x_BTD = (x_BTD - _mean(x_BTD, valid_BT1)).masked_fill(~valid_BT1, 0.0)
    # CKA does not see the scale: at unit norm the fourth powers neither overflow nor vanish, and as a constant it costs no gradient
    scale_B11 = x_BTD.detach().square().sum((1, 2), keepdim=True).sqrt()
    return x_BTD / scale_B11.clamp(min=TINY)


def _mean(x_BTD: Tensor, w_BT1: Tensor) -> Tensor:
    return x_BTD.sum(dim=1, keepdim=True) / w_BT1.sum(dim=1, keepdim=True).clamp(min=TINY)


def _squares(x_BXY: Tensor) -> Tensor:
    return x_BXY.square().sum((1, 2))
