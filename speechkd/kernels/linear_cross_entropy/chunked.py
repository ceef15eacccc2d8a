"""Chunked cross-entropy of a frozen head: d / d logits = softmax - onehot(target), computed in place."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels.chunks import frozen_head_total
from speechkd.kernels.logits import Head


def linear_cross_entropy(student: Head, targets_T: Tensor, mask_T: Tensor) -> LossOut:
    """See the package; masked-out rows have been zeroed."""

    def rows(logits_CV: Tensor, part: slice, want_grad: bool) -> tuple[Tensor, Tensor | None]:
        target_C1 = targets_T[part].unsqueeze(1)
        lse_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
        value_C = (lse_C1 - logits_CV.gather(1, target_C1)).squeeze(1)
        if not want_grad:
            return value_C, None
        grad_CV = logits_CV.sub_(lse_C1).exp_()
        return value_C, grad_CV.scatter_add_(1, target_C1, torch.full_like(lse_C1, -1.0))

    total = frozen_head_total(student, mask_T, rows)
    return LossOut(total, mask_T.to(total.dtype).sum())
