"""Hard and soft labels of the same rows in one loss: what `cross_modal` and `contrastive` share."""

from __future__ import annotations

from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels import linear_cross_entropy
from speechkd.kernels.linear_kl import divergence_from
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.linear_kl.reference import Logits


def joined(ce: LossOut, kl: LossOut, ce_factor: float, kl_factor: float) -> LossOut:
    """The sum of both, of the same rows."""
    return LossOut(ce_factor * ce.total + kl_factor * kl.total, ce.count)


def ce_and_kl(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    teacher: Logits,
    targets_T: Tensor,
    mask_T: Tensor,
    how: Divergence,
    ce_factor: float,
    kl_factor: float,
    softcap: float | None,
    impl: str,
) -> LossOut:
    """`joined` in nats, from the student's head and whatever gives a frozen teacher's logits, neither ever whole; errors as `linear_kl`."""
    ce = linear_cross_entropy(hidden_TD, weight_VD, targets_T, mask_T, impl=impl, softcap=softcap)
    kl = divergence_from(hidden_TD, weight_VD, teacher, mask_T, how, softcap, impl)
    return joined(ce, kl, ce_factor, kl_factor)
