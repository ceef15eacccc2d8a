"""KL between the teacher's and the student's next-token distributions at AUDIO positions (PL-Distill, arXiv 2602.01547: L_DA).

    L_DA = KL( softmax(Z_a^T / t) || softmax(Z_a^S / t) ),   t = 2, weighted by beta = 0.8
Same encoder and pooling on both sides give the same number of audio positions, so rows align one to one; L_DR is the same at response
positions (`divergences.forward_kl`, gamma = 1.0). Reconstructed: direction (forward), mean over positions, no t^2 factor (`t2_scale`),
and the teacher's larger vocabulary cut to the shared ids and renormalised (`shared_W`).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from speechkd.core.types import LossOut, Need
from speechkd.kernels import linear_kl
from speechkd.losses.base import HeadLoss, KernelConfig, Positions, PositionsConfig, Supervision, given
from speechkd.losses.divergences import forward_kl

TEMPERATURE = 2.0


def audio_kl(
    student_logits_AV: Tensor,
    teacher_logits_AU: Tensor,
    mask_A: Tensor,
    temperature: float = TEMPERATURE,
    t2_scale: bool = False,
    shared_W: Tensor | None = None,
) -> LossOut:
    """Sum over kept audio positions of KL(teacher || student) in nats; arguments and errors as `divergences.forward_kl`."""
    return forward_kl(student_logits_AV, teacher_logits_AU, mask_A, temperature, t2_scale, shared_W)


def linear_audio_kl(
    hidden_AD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_AE: Tensor,
    teacher_weight_UE: Tensor,
    mask_A: Tensor,
    temperature: float = TEMPERATURE,
    t2_scale: bool = False,
    shared_W: Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    impl: str = "auto",
) -> LossOut:
    """The same from hidden states and heads, logits never whole; arguments and errors as `kernels.linear_kl`."""
    return linear_kl(
        hidden_AD,
        weight_VD,
        teacher_hidden_AE,
        teacher_weight_UE,
        mask_A,
        temperature=temperature,
        t2_scale=t2_scale,
        shared_W=shared_W,
        softcap=softcap,
        teacher_softcap=teacher_softcap,
        impl=impl,
    )


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `audio_kl`."""

    weight: float = Field(default=0.8, ge=0.0, allow_inf_nan=False)
    at: Positions = "audio"
    temperature: float = Field(default=TEMPERATURE, gt=0.0, allow_inf_nan=False)
    t2_scale: bool = False


def _loss(hidden_AD: Tensor, weight_VD: Tensor, supervision: Supervision, config: Config, softcap: float | None = None) -> LossOut:
    return linear_audio_kl(
        hidden_AD,
        weight_VD,
        given(supervision.teacher_TE, "audio_kl", "dense"),
        given(supervision.teacher_weight_UE, "audio_kl", "dense"),
        supervision.mask_T,
        temperature=config.temperature,
        t2_scale=config.t2_scale,
        shared_W=supervision.shared_W,
        softcap=softcap,
        teacher_softcap=supervision.teacher_softcap,
        impl=config.impl,
    )


NEED = Need(signals=frozenset({"dense"}), student=frozenset({"head"}))
LOSS = HeadLoss(NEED=NEED, Config=Config, loss=_loss)
