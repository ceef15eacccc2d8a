"""Chunked divergence of a frozen head: both models' logits for a few rows, gradients by autograd within the chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels.chunks import frozen_head_total
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Head, Logits


def linear_kl(student: Head, teacher: Logits, mask_T: Tensor, how: Divergence) -> LossOut:
    """See the package; masked-out rows have been zeroed."""

    def rows(logits_CV: Tensor, part: slice, want_grad: bool) -> tuple[Tensor, Tensor | None]:
        with torch.set_grad_enabled(want_grad):
            leaf_CV = logits_CV.detach().requires_grad_(want_grad)
            value_C = how.rows(leaf_CV, teacher.logits(part))
            grad_CV = torch.autograd.grad(value_C.sum(), leaf_CV)[0] if want_grad else None
        return value_C.detach(), grad_CV

    total = frozen_head_total(student, mask_T, rows)
    return LossOut(total, mask_T.to(total.dtype).sum())
