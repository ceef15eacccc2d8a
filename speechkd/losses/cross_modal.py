"""Two-channel cross-modal distillation: the teacher always reads the question, the student reads it or hears it (P3, arXiv 2509.14930).

    L_{T->T} = CE(y; Q_t, student) + lambda tau^2 KL( p_T^tau(. | Q_t) || p_S^tau(. | Q_t) )
    L_{S->T} = CE(y; Q_a, student) + lambda tau^2 KL( p_T^tau(. | Q_t) || p_S^tau(. | Q_a) ),   Q_a = TTS(Q_t)
lambda = 0.5, tau = 2; y is the teacher's own answer ("Teacher CE", the paper's best) or the dataset's. CE is at temperature 1. One
formula for both channels: which one a row belongs to depends on what the student was given, so a channel is a mask.

Reconstructed: KL direction (forward, as printed), token mean over response positions under teacher forcing on the same answer, and
channels mixed in their natural proportion of rows. The table's `cross_modal` is for a live teacher; from stored log-probs it is the sum of
`response_ce` and of `topk_kl` with weight lambda, temperature tau and `t2_scale`.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut, Need
from speechkd.kernels.linear_kl import frozen_logits
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.losses.base import HeadLoss, KernelConfig, PositionsConfig, Supervision, given
from speechkd.losses.ce_and_kl import ce_and_kl, joined
from speechkd.losses.divergences import forward_kl
from speechkd.losses.response_ce import response_ce

KL_WEIGHT, TEMPERATURE = 0.5, 2.0


def cross_modal_kd(
    student_logits_TV: Tensor,
    teacher_logits_TU: Tensor,
    targets_T: Tensor,
    mask_T: Tensor,
    kl_weight: float = KL_WEIGHT,
    temperature: float = TEMPERATURE,
    shared_W: Tensor | None = None,
) -> LossOut:
    """Sum over kept rows of CE + lambda tau^2 KL, in nats.

    Args:
        student_logits_TV, teacher_logits_TU: at the positions that predict the answer's tokens, the student after text or speech, the
            teacher after text.
        targets_T: the answer's tokens; anything in rows that `mask_T` (boolean) leaves out.
        kl_weight: lambda; 0 is the paper's CE-only ablation.
    Raises InputError for shapes, temperature, a negative weight, and vocabularies that differ unsaid.
    """
    ce = response_ce(student_logits_TV, targets_T, mask_T)
    kl = forward_kl(student_logits_TV, teacher_logits_TU, mask_T, temperature, shared_W=shared_W)
    return joined(ce, kl, 1.0, _kl_factor(kl_weight, temperature))


def linear_cross_modal_kd(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_TE: Tensor,
    teacher_weight_UE: Tensor,
    targets_T: Tensor,
    mask_T: Tensor,
    kl_weight: float = KL_WEIGHT,
    temperature: float = TEMPERATURE,
    shared_W: Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    impl: str = "auto",
) -> LossOut:
    """The same from hidden states and heads of a live teacher, logits never whole; arguments and errors as `kernels.linear_kl`."""
    factor, how = _kl_factor(kl_weight, temperature), Divergence(name="forward_kl", temperature=temperature, shared_W=shared_W)
    teacher = frozen_logits(teacher_hidden_TE, teacher_weight_UE, mask_T, teacher_softcap)
    return ce_and_kl(hidden_TD, weight_VD, teacher, targets_T, mask_T, how, 1.0, factor, softcap, impl)


def _kl_factor(kl_weight: float, temperature: float) -> float:
    """lambda tau^2. Raises InputError for a negative weight."""
    if not kl_weight >= 0.0:
        raise InputError(f"kl_weight must be at least 0, given {kl_weight}")
    return kl_weight * temperature**2


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `cross_modal`; `streams` picks the channel, one block with both mixes them in their natural proportion."""

    kl_weight: float = Field(default=KL_WEIGHT, ge=0.0, allow_inf_nan=False)
    temperature: float = Field(default=TEMPERATURE, gt=0.0, allow_inf_nan=False)


def _loss(hidden_TD: Tensor, weight_VD: Tensor, supervision: Supervision, config: Config, softcap: float | None = None) -> LossOut:
    return linear_cross_modal_kd(
        hidden_TD,
        weight_VD,
        given(supervision.teacher_TE, "cross_modal", "dense"),
        given(supervision.teacher_weight_UE, "cross_modal", "dense"),
        given(supervision.targets_T, "cross_modal", "response"),
        supervision.mask_T,
        kl_weight=config.kl_weight,
        temperature=config.temperature,
        shared_W=supervision.shared_W,
        softcap=softcap,
        teacher_softcap=supervision.teacher_softcap,
        impl=config.impl,
    )


NEED = Need(signals=frozenset({"response", "dense"}), student=frozenset({"head"}))
LOSS = HeadLoss(NEED=NEED, Config=Config, loss=_loss)
