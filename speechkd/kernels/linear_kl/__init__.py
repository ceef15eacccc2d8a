"""Divergence between two linear heads, the teacher's rebuilt from its hidden states, without the logits of either."""

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
    check_rows(mask_T, {"hidden_TD": hidden_TD, "teacher_hidden_TE": teacher_hidden_TE})
    check_softcap(softcap)
    check_softcap(teacher_softcap)
    how = Divergence(name=divergence, temperature=temperature, beta=beta, alpha=alpha, t2_scale=t2_scale, shared_W=shared_W)
    run = dispatch.pick("linear_kl", impl, _IMPLEMENTATIONS, hidden_TD, weight_VD)
    teacher = reference.Head(masked_rows(teacher_hidden_TE, mask_T).detach(), teacher_weight_UE.detach(), teacher_softcap)
    return run(reference.Head(masked_rows(hidden_TD, mask_T), weight_VD, softcap), teacher, mask_T, how)
