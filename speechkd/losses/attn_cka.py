"""Attention-weighted CKA between the projector outputs of an audio teacher and student (PL-Distill, arXiv 2602.01547).

    L_DP = 1 - AwCKA(H_a^T, H_a^S, w),   AwCKA = linear CKA of diag(w) H_a^T and diag(w) H_a^S
w is the teacher's last-layer attention from response tokens to audio positions. Whether w or sqrt(w) multiplies, and before or after
centring, the paper leaves open: `mode` offers the readings, `pre_w` is the literal one.
"""

from __future__ import annotations

from torch import Tensor

from speechkd.kernels import weighted_cka


def attention_weighted_cka(student_BTD: Tensor, teacher_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor, mode: str = "pre_w") -> Tensor:
    """AwCKA of each utterance, [B], between 0 and 1, wide; the loss of utterance b is 1 minus it.

    Args:
        student_BTD, teacher_BTE: projected audio positions; the teacher gets no gradient.
        weights_BT: teacher attention, non-negative, no gradient; only ratios within an utterance matter.
        mask_BT: boolean, False for padding.
        mode: pre_w, pre_sqrt_w or weighted_hsic (`kernels.weighted_cka`).
    An utterance with fewer than two valid positions has the value 0 and no gradient: leave it out of the count.
    Raises InputError for shapes and an unknown mode.
    """
    return weighted_cka(student_BTD, teacher_BTE.detach(), weights_BT.detach(), mask_BT, mode)
