"""Two-channel cross-modal distillation: the teacher always reads the question, the student reads it or hears it (arXiv 2509.14930).

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

from speechkd.core.types import LossOut, Needs
from speechkd.kernels.linear_cross_entropy import cross_entropy_from
from speechkd.kernels.linear_kl import divergence_from
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Head, Logits
from speechkd.losses.base import HeadLoss, KernelConfig, PositionsConfig, Supervision, given


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `cross_modal`; `streams` picks the channel, one block with both mixes them in their natural proportion."""

    kl_weight: float = Field(default=0.5, ge=0.0, allow_inf_nan=False)
    """lambda; 0 is the paper's CE-only ablation"""
    temperature: float = Field(default=2.0, gt=0.0, allow_inf_nan=False)

    def needs(self) -> Needs:
        """The answer's tokens, and the whole distribution of a live teacher."""
        return self._from_teacher("dense", stored=["response"], student="head")


def cross_modal_kd(
    student: Logits, teacher: Logits, targets_T: Tensor, mask_T: Tensor, config: Config, shared_W: Tensor | None = None
) -> LossOut:
    """Sum over kept rows of CE + lambda tau^2 KL, in nats; the teacher gets no gradient.

    Args:
        student, teacher: at the positions that predict the answer's tokens, the student after text or speech, the teacher after text.
        targets_T: the answer's tokens; anything in rows that `mask_T` (bool) leaves out.
        shared_W: see `kernels.logits.shared_vocabulary`; needed where the vocabularies differ.
    Raises InputError for shapes and vocabularies that differ without `shared_W`.
    """
    how = Divergence(name="forward_kl", temperature=config.temperature, shared_W=shared_W)
    ce = cross_entropy_from(student, targets_T, mask_T, config.impl)
    kl = divergence_from(student, teacher, mask_T, how, config.impl)
    return LossOut(ce.total + config.kl_weight * config.temperature**2 * kl.total, ce.count)


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    teacher = given(supervision.teacher, "cross_modal", "dense")
    targets_T = given(supervision.targets_T, "cross_modal", "response")
    return cross_modal_kd(student, teacher, targets_T, supervision.mask_T, config, supervision.shared_W)


LOSS = HeadLoss(Config=Config, loss=_loss)
