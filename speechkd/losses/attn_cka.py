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

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut, Need
from speechkd.kernels import weighted_cka
from speechkd.kernels.logits import wide
from speechkd.losses.base import ClipFacts, ClipLoss, Clips, TaughtConfig, given


def audio_attention(attention_BHRQ: Tensor, response_mask_BR: Tensor, audio_mask_BQ: Tensor) -> Tensor:
    """w of each utterance, [B, Q], wide: how much the teacher's response attends to each audio position; sums to 1 over valid positions.

    Args:
        attention_BHRQ: last-layer attention, H heads, rows the response tokens, columns the audio positions.
        response_mask_BR, audio_mask_BQ: boolean, False for padding, whatever stands there.
    0 everywhere for an utterance without response or audio. Raises InputError for shapes.
    """
    B, _, R, Q = attention_BHRQ.shape
    if response_mask_BR.shape != (B, R) or audio_mask_BQ.shape != (B, Q):
        given = [list(t.shape) for t in (attention_BHRQ, response_mask_BR, audio_mask_BQ)]
        raise InputError(f"attention_BHRQ, response_mask_BR and audio_mask_BQ must agree in B, R and Q, have shapes {given}")
    valid_BRQ = response_mask_BR.unsqueeze(2) & audio_mask_BQ.unsqueeze(1)
    summed_BQ = wide(attention_BHRQ.detach()).masked_fill(~valid_BRQ.unsqueeze(1), 0.0).sum(dim=(1, 2))
    # the mean over heads and rows differs from this sum by a factor that the normalisation takes out
    return summed_BQ / summed_BQ.sum(dim=1, keepdim=True).clamp(min=1e-30)


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


class Config(TaughtConfig):
    """Recipe block of `attn_cka`."""

    mode: Literal["pre_w", "pre_sqrt_w", "weighted_hsic"] | None = None
    """with attention only: how it weighs; pre_w"""
    attention: bool | Literal["stored"] = True
    """weigh positions by the teacher's attention; False is plain CKA, the paper's ablation; `stored`: by the attention that the column's
    audio-hearing teacher had (`signals.attention`), while the states are the live teacher's"""

    @model_validator(mode="after")
    def _nothing_to_weigh_by(self) -> Config:
        if self.mode is not None and not self.attention:
            raise ValueError("without attention all positions weigh the same, whatever `mode` says: leave it out")
        return self


def _loss(student: Clips, teacher: Clips | None, facts: ClipFacts, config: Config) -> LossOut:
    projected_CQE = given(teacher.projected_CQD if teacher else None, "attn_cka", "projected")
    mask_CQ = facts.mask_CQ & facts.keep_C.unsqueeze(1)
    weights_CQ = given(teacher.attention_CQ if teacher else None, "attn_cka", "projected") if config.attention else wide(mask_CQ)
    return attn_cka_loss(student.projected_CQD, projected_CQE, weights_CQ, mask_CQ, config.mode or "pre_w")


def _keeps(facts: ClipFacts, config: Config) -> Tensor:
    return facts.keep_C & comparable(facts.mask_CQ)


NEED = Need(signals=frozenset({"projected"}), student=frozenset({"projected"}))
LOSS = ClipLoss(NEED=NEED, Config=Config, loss=_loss, keeps=_keeps)
