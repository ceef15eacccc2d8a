"""Weighted linear CKA, one value per utterance of a padded batch."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.core.errors import InputError, unknown_name
from speechkd.kernels import dispatch
from speechkd.kernels.autocast import autocast_on
from speechkd.kernels.weighted_cka import closed, reference

MODES = ("pre_w", "pre_sqrt_w", "weighted_hsic")


def _needs_constant_weights(weights_BT: object) -> str | None:
    """The closed form makes no gradient of the weights."""
    assert isinstance(weights_BT, Tensor)
    if weights_BT.requires_grad and torch.is_grad_enabled():
        return "the weights want a gradient"
    return "autocast is on" if autocast_on(weights_BT) else None


_IMPLEMENTATIONS = {
    "closed": dispatch.Implementation(closed.weighted_cka, _needs_constant_weights),
    "reference": dispatch.Implementation(reference.weighted_cka, dispatch.no_obstacle),
}


def weighted_cka(
    x_BTD: Tensor, y_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor, mode: str = "pre_w", impl: str = "auto", form: str = "auto"
) -> Tensor:
    """Linear CKA between two views of the same positions, one value in [0, 1] for each utterance, [B], wide.

    Args:
        x_BTD, y_BTE: the two views; T positions, widths may differ.
        weights_BT: non-negative; only ratios within an utterance matter.
        mask_BT: boolean, False for padding, whatever stands there.
        mode: `pre_w`: rows times w, then centred (PL-Distill, arXiv 2602.01547, as read); `pre_sqrt_w`: rows times sqrt(w), then
            centred; `weighted_hsic`: centred by the weighted mean, then times sqrt(w).
        impl: auto, closed (closed-form gradient of x and y; on a CPU, padding is skipped) or reference.
        form: `gram` (T x T), `feature` (D x E), or `auto`, the one with fewer operations; equal up to rounding.
    An utterance whose centred rows are all zero (no or one valid position) has the value 0 and a zero gradient.
    Raises InputError for shapes and unknown names.
    """
    if mode not in MODES:
        raise InputError(unknown_name("mode", mode, MODES))
    if form not in ("auto", "gram", "feature"):
        raise InputError(unknown_name("form", form, ("auto", "gram", "feature")))
    shape = mask_BT.shape
    if not (x_BTD.shape[:2] == y_BTE.shape[:2] == weights_BT.shape == shape):
        given = [list(t.shape) for t in (x_BTD, y_BTE, weights_BT, mask_BT)]
        raise InputError(f"x_BTD, y_BTE, weights_BT and mask_BT must agree in B and T, have shapes {given}")
    run = dispatch.pick("weighted_cka", impl, _IMPLEMENTATIONS, weights_BT)
    return run(x_BTD, y_BTE, weights_BT, mask_BT, mode, form)
