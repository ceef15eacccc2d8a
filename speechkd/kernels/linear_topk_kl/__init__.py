"""Forward KL from a teacher's stored top-k log-probs to the student's LM head, without materialised [T, V] logits."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels import dispatch
from speechkd.kernels.linear_topk_kl import chunked, reference, tiled, triton_rows
from speechkd.kernels.linear_topk_kl.target import teacher_target
from speechkd.kernels.logits import Head, KeptRows, Logits, check_temperature

_IMPLEMENTATIONS = {
    "triton": dispatch.Implementation(partial(chunked.linear_topk_kl, rows_=triton_rows.topk_kl_rows_), dispatch.needs_triton_head),
    "tiled": dispatch.Implementation(tiled.linear_topk_kl, tiled.obstacle, tiled.slower),
    "chunked": dispatch.Implementation(chunked.linear_topk_kl, dispatch.needs_head),
    "reference": dispatch.Implementation(reference.linear_topk_kl, dispatch.no_obstacle),
}


def linear_topk_kl(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    ids_TK: Tensor,
    logp_TK: Tensor,
    mask_T: Tensor,
    tail_logp_T: Tensor | None = None,
    temperature: float = 1.0,
    impl: str = "auto",
    tail: str = "bucket",
    softcap: float | None = None,
) -> LossOut:
    """Sum of KL(teacher || student) in nats over the rows that `mask_T` keeps, and their count. The teacher is its K likeliest ids.

    Args:
        hidden_TD: hidden states at the predicting positions, [T, D].
        weight_VD: the head's weight, [V, D]; gets a gradient if it wants one.
        ids_TK: ids in [0, V), different within a row; a slot with log-prob -inf is empty and its id is ignored.
        logp_TK: natural log-probs over the teacher's whole vocabulary, at the capture temperature.
        mask_T: boolean; False rows change neither total nor count and get a zero gradient, even if they hold NaN.
        tail_logp_T: log of the teacher's mass outside the K ids; None: computed from `logp_TK`.
        temperature: divides the student's logits (after the soft cap); must equal the capture temperature.
        impl: auto, triton, tiled, chunked or reference.
        tail: `bucket`: the rest is one more outcome, (K+1)-way KL; `renormalise`: both sides over the K ids only;
            `ignore`: the K terms alone, student over the whole vocabulary (biased, may be negative).
        softcap: Gemma 2's final logit soft-capping; None: no cap.
    Raises:
        InputError: shapes, temperature, tail, soft cap or `impl`.
    """
    student = Head(hidden_TD, weight_VD, softcap)
    return topk_kl_from(student, ids_TK, logp_TK, mask_T, tail_logp_T, temperature, tail, impl)


def topk_kl_from(
    student: Logits,
    ids_TK: Tensor,
    logp_TK: Tensor,
    mask_T: Tensor,
    tail_logp_T: Tensor | None,
    temperature: float,
    tail: str,
    impl: str = "auto",
) -> LossOut:
    """Like `linear_topk_kl`, for a `Head` (logits computed a few rows at a time by `chunked`) or `Plain` logits."""
    check_temperature(temperature)
    rows = KeptRows(mask_T)
    student, ids_XK, logp_XK = student.kept(rows, "student"), rows.of(ids_TK, "ids_TK"), rows.of(logp_TK, "logp_TK")
    tail_logp_X = None if tail_logp_T is None else rows.of(tail_logp_T, "tail_logp_T")
    run = dispatch.pick("linear_topk_kl", impl, _IMPLEMENTATIONS, student)
    target = teacher_target(ids_XK, logp_XK, tail_logp_X, tail, student.vocabulary, student.dtype)
    return rows.loss(run(student, target, temperature, rows.mask_T))
