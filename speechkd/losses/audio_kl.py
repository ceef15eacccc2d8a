"""KL between the teacher's and the student's next-token distributions at AUDIO positions (PL-Distill, arXiv 2602.01547: L_DA).

    L_DA = KL( softmax(Z_a^T / t) || softmax(Z_a^S / t) ),   t = 2, weighted by beta = 0.8
Same encoder and pooling on both sides give the same number of audio positions, so rows align one to one; L_DR is the same at response
positions (`divergences.forward_kl`, gamma = 1.0). Reconstructed: direction (forward), mean over positions, no t^2 factor (`t2_scale`),
and the teacher's larger vocabulary cut to the shared ids and renormalised (`shared_W`).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from speechkd.core.types import LossOut, Needs
from speechkd.kernels.linear_kl import divergence_from
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Head, Logits
from speechkd.losses.base import HeadLoss, KernelConfig, Positions, PositionsConfig, Supervision, given


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `audio_kl`, with the paper's values."""

    weight: float = Field(default=0.8, ge=0.0, allow_inf_nan=False)
    at: Positions = "audio"
    temperature: float = Field(default=2.0, gt=0.0, allow_inf_nan=False)
    t2_scale: bool = False

    def needs(self) -> Needs:
        """The whole distribution of a live teacher that hears the clip."""
        return self._from_teacher("dense", student="head")


def audio_kl(student: Logits, teacher: Logits, mask_A: Tensor, config: Config, shared_W: Tensor | None = None) -> LossOut:
    """Sum over kept audio positions of KL(teacher || student), in nats; the teacher gets no gradient.

    Args:
        student, teacher: at the batch's A audio positions.
        mask_A: bool; False for padding and for the positions of a dummy clip.
        shared_W: see `kernels.logits.shared_vocabulary`; needed where the vocabularies differ.
    Raises InputError for shapes and vocabularies that differ without `shared_W`.
    """
    how = Divergence(name="forward_kl", temperature=config.temperature, t2_scale=config.t2_scale, shared_W=shared_W)
    return divergence_from(student, teacher, mask_A, how, config.impl)


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    return audio_kl(student, given(supervision.teacher, "audio_kl", "dense"), supervision.mask_T, config, supervision.shared_W)


LOSS = HeadLoss(Config=Config, loss=_loss)
