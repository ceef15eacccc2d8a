"""Divergence (KL, JSD, skewed KL) between teacher and student, from their hidden states, without materialised [T, V] logits."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels import dispatch
from speechkd.kernels.linear_kl import chunked, reference, triton_rows
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Head, KeptRows, Logits, check_shared

_IMPLEMENTATIONS = {
    "triton": dispatch.Implementation(partial(chunked.linear_kl, rows_=triton_rows.kl_rows_), dispatch.needs_triton_head),
    "chunked": dispatch.Implementation(chunked.linear_kl, dispatch.needs_head),
    "reference": dispatch.Implementation(reference.linear_kl, dispatch.no_obstacle),
}


def linear_kl(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_TE: Tensor,
    teacher_weight_UE: Tensor,
    mask_T: Tensor,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    alpha: float = 0.1,
    t2_scale: bool = False,
    shared_W: Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    impl: str = "auto",
) -> LossOut:
    """Sum of D(teacher, student) in nats over the rows that `mask_T` keeps, and their count. Exact.

    Args:
        hidden_TD, weight_VD: student; the weight gets a gradient if it wants one.
        teacher_hidden_TE, teacher_weight_UE: teacher, after its final norm, with width E and U ids. Gets no gradient.
        mask_T: boolean; False rows change neither total nor count and get a zero gradient.
        divergence: forward_kl, reverse_kl, jsd (by beta), skew_kl or skew_reverse_kl (by alpha).
        temperature: divides both sides' logits, after the soft caps.
        t2_scale: multiply by temperature squared.
        shared_W: boolean, ids that both tokenizers share (see `logits.shared_vocabulary`); needed if V and U differ.
        softcap, teacher_softcap: final logit soft-capping of each model.
        impl: auto, triton, chunked or reference.
    Raises:
        InputError: shapes, vocabularies, divergence and its parameters, soft cap or `impl`.
    """
    how = Divergence(name=divergence, temperature=temperature, beta=beta, alpha=alpha, t2_scale=t2_scale, shared_W=shared_W)
    student, teacher = Head(hidden_TD, weight_VD, softcap), Head(teacher_hidden_TE, teacher_weight_UE, teacher_softcap)
    return divergence_from(student, teacher.frozen(), mask_T, how, impl)


def divergence_from(student: Logits, teacher: Logits, mask_T: Tensor, how: Divergence, impl: str = "auto") -> LossOut:
    """Like `linear_kl`, with a `Head` (`chunked` reads it a few rows at a time) or `Plain` logits on either side."""
    rows = KeptRows(mask_T)
    student, teacher = student.kept(rows, "student"), teacher.kept(rows, "teacher")
    check_shared(student.vocabulary, teacher.vocabulary, how.shared_W)
    return rows.loss(dispatch.pick("linear_kl", impl, _IMPLEMENTATIONS, student)(student, teacher, how, rows.mask_T))
