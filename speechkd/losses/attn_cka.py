"""Attention-weighted CKA between the projector outputs of an audio teacher and student (PL-Distill, arXiv 2602.01547).

    w_i  = mean over heads and response tokens r of A^(last)_{r,i},  then w <- w / sum_i w_i          no gradient
    L_DP = 1 - AwCKA(H_a^T, H_a^S, w),   AwCKA = linear CKA of diag(w) H_a^T and diag(w) H_a^S
A is the teacher LLM's last self-attention, rows response tokens, columns audio positions. Reconstructed: the mean over heads and response
rows, the normalisation, and whether w or sqrt(w) multiplies, and before or after centring: `mode` offers the readings, `pre_w` is the
literal one. CKA is taken within each utterance over its valid positions, then averaged over utterances.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from torch import Tensor

from speechkd.core.types import LossOut, Needs
from speechkd.kernels import weighted_cka
from speechkd.kernels.logits import wide
from speechkd.losses.base import ClipFacts, ClipLoss, Clips, TeacherLossConfig, given


def attention_weighted_cka(student_BTD: Tensor, teacher_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor, mode: str = "pre_w") -> Tensor:
    """AwCKA of each utterance, [B], between 0 and 1, wide; the loss of utterance b is 1 minus it.

    Args:
        student_BTD, teacher_BTE: projected audio positions; the teacher gets no gradient.
        weights_BT: teacher attention, non-negative, no gradient; only ratios within an utterance matter.
        mask_BT: boolean, False for padding.
        mode: pre_w, pre_sqrt_w or weighted_hsic (`kernels.weighted_cka`).
    An utterance with fewer than two valid positions has the value 0 and no gradient: `attn_cka_loss` leaves it out of the count.
    Raises InputError for shapes and an unknown mode.
    """
    return weighted_cka(student_BTD, teacher_BTE.detach(), weights_BT.detach(), mask_BT, mode)


def attn_cka_loss(student_BTD: Tensor, teacher_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor, mode: str = "pre_w") -> LossOut:
    """L_DP: sum over utterances with at least two valid positions of 1 - AwCKA; arguments and errors as `attention_weighted_cka`.

    All weights equal gives plain CKA, the paper's ablation.
    """
    cka_B = attention_weighted_cka(student_BTD, teacher_BTE, weights_BT, mask_BT, mode)
    keep_B = comparable(mask_BT).to(cka_B.dtype)
    return LossOut(((1.0 - cka_B) * keep_B).sum(), keep_B.sum())


def comparable(mask_BT: Tensor) -> Tensor:
    """The utterances that count, boolean [B]: fewer than two positions have no geometry."""
    return mask_BT.sum(dim=1) >= 2


class Config(TeacherLossConfig):
    """Recipe block of `attn_cka`."""

    WITHOUT = {"attention": "set `attention: false`, or `attention: stored` where a column has it"}

    mode: Literal["pre_w", "pre_sqrt_w", "weighted_hsic"] | None = None
    """with attention only: how it weighs; pre_w"""
    attention: bool | Literal["stored"] = True
    """weigh positions by the teacher's attention; False is plain CKA, the paper's ablation; `stored`: by the attention that the column's
    audio-hearing teacher had (`signals.attention`), while the states are the live teacher's"""

    def needs(self) -> Needs:
        """What a live teacher's projector makes of the clips, and its attention or a stored one."""
        attention = [] if self.attention is not True else ["attention"]
        return self._from_teacher("projected", *attention, stored=["attention"] if self.attention == "stored" else [], student="projected")

    @model_validator(mode="after")
    def _nothing_to_weigh_by(self) -> Config:
        if self.mode is not None and not self.attention:
            raise ValueError("without attention all positions weigh the same, whatever `mode` says: leave it out")
        return self


def _loss(student: Clips, teacher: Clips | None, facts: ClipFacts, config: Config) -> LossOut:
    projected_CQE = given(teacher.projected_CQD if teacher else None, "attn_cka", "projected")
    mask_CQ = facts.mask_CQ & facts.keep_C.unsqueeze(1)
    attention_CQ = facts.attention_CQ if config.attention == "stored" else teacher.attention_CQ if teacher else None
    weights_CQ = given(attention_CQ, "attn_cka", "attention") if config.attention else wide(mask_CQ)
    return attn_cka_loss(student.projected_CQD, projected_CQE, weights_CQ, mask_CQ, config.mode or "pre_w")


def _keeps(facts: ClipFacts, config: Config) -> Tensor:
    return facts.keep_C & comparable(facts.mask_CQ)


LOSS = ClipLoss(Config=Config, loss=_loss, keeps=_keeps)
