"""Contrastive target: the teacher's answer pushed away from what it would say without hearing (CAAD, arXiv 2606.23052).

    z^ = z_pos + alpha (z_pos - z_neg)             z_pos: audio and text given, z_neg: audio masked; teacher-forced on the same Y*
    L  = lambda KL( softmax(z^ / tau) || p_S^tau ) + (1 - lambda) CE(Y*),   lambda = 0.7, tau = 2
Y* is the description that the teacher made of the metadata. Reconstructed: the exact parametrisation of the extrapolation, the token
mean, and no tau^2 factor. alpha = 1 was best for accuracy, 2 for the "shift" measure.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut, Need
from speechkd.kernels.linear_kl import frozen_logits
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.linear_kl.reference import Logits
from speechkd.kernels.logits import FLOOR, masked_rows, wide
from speechkd.losses.base import HeadLoss, KernelConfig, PositionsConfig, Supervision, given
from speechkd.losses.ce_and_kl import ce_and_kl, joined
from speechkd.losses.divergences import forward_kl
from speechkd.losses.response_ce import response_ce

ALPHA, KL_WEIGHT, TEMPERATURE = 1.0, 0.7, 2.0


def contrastive_target(positive_TU: Tensor, negative_TU: Tensor, alpha: float = ALPHA) -> Tensor:
    """z_pos + alpha (z_pos - z_neg), wide, without gradient; alpha = 0 is the plain teacher.

    An id that z_pos rules out (-inf) stays ruled out; one that only z_neg rules out is not pushed. Raises InputError for shapes and a
    negative alpha.
    """
    if not alpha >= 0.0:
        raise InputError(f"alpha must be at least 0, given {alpha}")
    if positive_TU.shape != negative_TU.shape:
        raise InputError(f"both paths must have one shape, have {list(positive_TU.shape)} and {list(negative_TU.shape)}")
    positive_TU, negative_TU = wide(positive_TU.detach()), wide(negative_TU.detach())
    ruled_out_TU = positive_TU <= FLOOR
    apart_TU = (positive_TU - negative_TU.clamp(min=FLOOR)).masked_fill(ruled_out_TU | (negative_TU <= FLOOR), 0.0)
    return (positive_TU + alpha * apart_TU).clamp(min=FLOOR)


def contrastive_kd(
    student_logits_TV: Tensor,
    positive_logits_TU: Tensor,
    negative_logits_TU: Tensor,
    targets_T: Tensor,
    mask_T: Tensor,
    alpha: float = ALPHA,
    kl_weight: float = KL_WEIGHT,
    temperature: float = TEMPERATURE,
    shared_W: Tensor | None = None,
) -> LossOut:
    """Sum over kept rows of lambda KL + (1 - lambda) CE, in nats.

    Args:
        positive_logits_TU, negative_logits_TU: teacher's, at the positions that predict Y*.
        targets_T: tokens of Y*; anything in rows that `mask_T` (boolean) leaves out.
    Raises InputError for shapes, alpha, a weight outside [0, 1], temperature, and vocabularies that differ unsaid.
    """
    check_share(kl_weight)
    target_TU = contrastive_target(masked_rows(positive_logits_TU, mask_T), masked_rows(negative_logits_TU, mask_T), alpha)
    kl = forward_kl(student_logits_TV, target_TU, mask_T, temperature, shared_W=shared_W)
    ce = response_ce(student_logits_TV, targets_T, mask_T)
    return joined(ce, kl, 1.0 - kl_weight, kl_weight)


class Contrast(NamedTuple):
    """A teacher that heard and one that did not, as one: logits of a few rows at a time."""

    positive: Logits
    negative: Logits
    alpha: float

    def logits(self, part: slice = slice(None)) -> Tensor:
        """z^ of some rows."""
        return contrastive_target(self.positive.logits(part), self.negative.logits(part), self.alpha)


def linear_contrastive_kd(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    positive_hidden_TE: Tensor,
    negative_hidden_TE: Tensor,
    teacher_weight_UE: Tensor,
    targets_T: Tensor,
    mask_T: Tensor,
    alpha: float = ALPHA,
    kl_weight: float = KL_WEIGHT,
    temperature: float = TEMPERATURE,
    shared_W: Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    impl: str = "auto",
) -> LossOut:
    """The same from hidden states and heads, logits never whole; errors as there and as `kernels.linear_kl`."""
    check_share(kl_weight)
    heard = frozen_logits(positive_hidden_TE, teacher_weight_UE, mask_T, teacher_softcap)
    unheard = frozen_logits(negative_hidden_TE, teacher_weight_UE, mask_T, teacher_softcap)
    how = Divergence(name="forward_kl", temperature=temperature, shared_W=shared_W)
    target = Contrast(heard, unheard, alpha)
    return ce_and_kl(hidden_TD, weight_VD, target, targets_T, mask_T, how, 1.0 - kl_weight, kl_weight, softcap, impl)


def check_share(kl_weight: float) -> None:
    """Raises InputError unless the KL's share lies in [0, 1]."""
    if not 0.0 <= kl_weight <= 1.0:
        raise InputError(f"kl_weight must be between 0 and 1, given {kl_weight}")


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `contrastive`."""

    negative: str = ""
    """the live teacher's pass without the metadata: same model, nothing read"""
    alpha: float = Field(default=ALPHA, ge=0.0, allow_inf_nan=False)
    kl_weight: float = Field(default=KL_WEIGHT, ge=0.0, le=1.0)
    """share of the KL; the rest is the CE's"""
    temperature: float = Field(default=TEMPERATURE, gt=0.0, allow_inf_nan=False)


def _loss(hidden_TD: Tensor, weight_VD: Tensor, supervision: Supervision, config: Config, softcap: float | None = None) -> LossOut:
    return linear_contrastive_kd(
        hidden_TD,
        weight_VD,
        given(supervision.teacher_TE, "contrastive", "dense"),
        given(supervision.negative_TE, "contrastive", "dense"),
        given(supervision.teacher_weight_UE, "contrastive", "dense"),
        given(supervision.targets_T, "contrastive", "response"),
        supervision.mask_T,
        alpha=config.alpha,
        kl_weight=config.kl_weight,
        temperature=config.temperature,
        shared_W=supervision.shared_W,
        softcap=softcap,
        teacher_softcap=supervision.teacher_softcap,
        impl=config.impl,
    )


NEED = Need(signals=frozenset({"response", "dense"}), student=frozenset({"head"}))
LOSS = HeadLoss(NEED=NEED, Config=Config, loss=_loss)
