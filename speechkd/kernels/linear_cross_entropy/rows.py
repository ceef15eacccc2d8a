"""Cross-entropy of rows of logits, in place: d / d logits = softmax - onehot(target)."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.kernels.chunks import wide_blocks
from speechkd.kernels.logits import soft_cap_, wide


def cross_entropy_rows_(logits_CV: Tensor, targets_C: Tensor, softcap: float | None, want_grad: bool) -> Tensor:
    """- log softmax(logits)[target] of each row, [C], in nats, wide. With `want_grad` the gradient replaces the logits.

    Args:
        logits_CV: before the soft cap.
        targets_C: ids in [0, V).
    """
    value_C = wide(torch.empty_like(logits_CV[:, 0]))
    for part, z_XV in wide_blocks(logits_CV, want_grad):
        slope_XV = soft_cap_(z_XV, softcap, want_grad)
        target_X1 = targets_C[part].unsqueeze(1)
        target_logit_X1 = z_XV.gather(1, target_X1)
        most_X1 = z_XV.amax(1, keepdim=True)
        sum_X1 = z_XV.sub_(most_X1).exp_().sum(1, keepdim=True)
        value_C[part] = (sum_X1.log() + most_X1 - target_logit_X1).squeeze(1)
        if want_grad:
            z_XV.mul_(sum_X1.reciprocal()).scatter_add_(1, target_X1, torch.full_like(sum_X1, -1.0))
            if slope_XV is not None:
                z_XV.mul_(slope_XV)
    return value_C
