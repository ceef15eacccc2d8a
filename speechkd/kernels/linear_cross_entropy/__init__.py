"""Cross-entropy of an LM head without materialised [T, V] logits."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels import dispatch
from speechkd.kernels.linear_cross_entropy import chunked, reference, tiled, triton_rows
from speechkd.kernels.linear_topk_kl.tiled import obstacle, slower
from speechkd.kernels.logits import Head, KeptRows, Logits

_IMPLEMENTATIONS = {
    "triton": dispatch.Implementation(
        partial(chunked.linear_cross_entropy, rows_=triton_rows.cross_entropy_rows_), dispatch.needs_triton_head
    ),
    "tiled": dispatch.Implementation(tiled.linear_cross_entropy, obstacle, slower),
    "chunked": dispatch.Implementation(chunked.linear_cross_entropy, dispatch.needs_head),
    "reference": dispatch.Implementation(reference.linear_cross_entropy, dispatch.no_obstacle),
}


def linear_cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, mask_T: Tensor, impl: str = "auto", softcap: float | None = None
) -> LossOut:
    """- sum over kept rows of log softmax(hidden @ weight^T)[target], in nats.

    Args:
        hidden_TD: hidden states at the predicting positions (`losses.positions`), [T, D].
        weight_VD: the head's weight, [V, D]; gets a gradient if it wants one.
        targets_T: ids in [0, V); any value in masked-out rows.
        mask_T: boolean; False rows change neither total nor count and get a zero gradient.
        impl: auto, triton, tiled, chunked or reference.
        softcap: Gemma 2's final logit soft-capping, None without.
    Raises:
        InputError: shapes, soft cap or `impl`.
    """
    return cross_entropy_from(Head(hidden_TD, weight_VD, softcap), targets_T, mask_T, impl)


def cross_entropy_from(student: Logits, targets_T: Tensor, mask_T: Tensor, impl: str = "auto") -> LossOut:
    """The same for logits of any form, a few rows at a time where it is a head."""
    rows = KeptRows(mask_T)
    student, targets_X = student.kept(rows, "student"), rows.of(targets_T, "targets_T")
    return rows.loss(dispatch.pick("linear_cross_entropy", impl, _IMPLEMENTATIONS, student)(student, targets_X, rows.mask_T))
