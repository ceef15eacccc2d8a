"""Divergence between the LM heads of teacher and student, from their hidden states, without materialised [T, V] logits."""

from __future__ import annotations

from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels import dispatch
from speechkd.kernels.linear_kl import chunked, reference
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import check_rows, check_softcap, masked_rows

_IMPLEMENTATIONS = {
    "chunked": (chunked.linear_kl, dispatch.frozen_head),
    "reference": (reference.linear_kl, dispatch.anything),
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
    """Sum over kept rows of D(teacher, student) in nats; exact, like `losses.divergences` on the logits of both.

    Args:
        hidden_TD, weight_VD: student; the head's weight gets no gradient from `chunked`, so `auto` takes `reference` if it wants one.
        teacher_hidden_TE, teacher_weight_UE: teacher, after its final norm; never given a gradient.
        mask_T: boolean; False rows change neither total nor count and get a zero gradient.
        divergence: forward_kl, reverse_kl, jsd (by beta), skew_kl or skew_reverse_kl (by alpha).
        temperature: divides both sides' logits, after the soft caps.
        t2_scale: multiply by temperature squared.
        shared_W: see `logits.shared_vocabulary`; needed where V and U differ.
        softcap, teacher_softcap: final logit soft-capping of each model.
        impl: auto, reference or chunked.
    Raises:
        InputError: shapes, vocabularies, divergence and its parameters, soft cap or `impl`.
    """
    how = Divergence(name=divergence, temperature=temperature, beta=beta, alpha=alpha, t2_scale=t2_scale, shared_W=shared_W)
    teacher = frozen_logits(teacher_hidden_TE, teacher_weight_UE, mask_T, teacher_softcap)
    return divergence_from(hidden_TD, weight_VD, teacher, mask_T, how, softcap, impl)


def frozen_logits(hidden_TE: Tensor, weight_UE: Tensor, mask_T: Tensor, softcap: float | None = None) -> reference.Head:
    """A teacher's head whose logits are computed on demand, without gradient. Raises InputError for wrong rows or soft cap."""
    check_rows(mask_T, {"teacher_hidden_TE": hidden_TE})
    check_softcap(softcap)
    return reference.Head(masked_rows(hidden_TE, mask_T).detach(), weight_UE.detach(), softcap)


def divergence_from(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    teacher: reference.Logits,
    mask_T: Tensor,
    how: Divergence,
    softcap: float | None = None,
    impl: str = "auto",
) -> LossOut:
    """`linear_kl` with a teacher given as any object that computes logits of some rows, without gradient (`losses.contrastive`)."""
    check_rows(mask_T, {"hidden_TD": hidden_TD})
    check_softcap(softcap)
    run = dispatch.pick("linear_kl", impl, _IMPLEMENTATIONS, hidden_TD, weight_VD)
    return run(reference.Head(masked_rows(hidden_TD, mask_T), weight_VD, softcap), teacher, mask_T, how)
