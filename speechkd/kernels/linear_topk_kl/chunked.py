"""Frozen head, chunk by chunk, gradient in closed form.

With q the student's softmax, p the teacher, m its kept mass (1 where it is a proper distribution), r the ids outside the K kept:
    bucket       d/dz_k = q_k - p_k    d/dz_r = q_r - p_tail * q_r / q_tail
    ignore       d/dz_k = m q_k - p_k  d/dz_r = m q_r
    renormalise  d/dz_k = q_k / q_kept - p_k,  0 outside
All have the form c * softmax over the rest for r; that softmax needs one exp over the chunk, in the logits' own buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels.chunks import frozen_head_total
from speechkd.kernels.linear_topk_kl.target import Target
from speechkd.kernels.logits import FLOOR, Head


def linear_topk_kl(student: Head, target: Target, mask_T: Tensor, temperature: float) -> LossOut:
    """See the package; masked-out rows have been zeroed."""

    def rows(logits_CV: Tensor, part: slice, want_grad: bool) -> tuple[Tensor, Tensor | None]:
        ids_CK, valid_CK, logp_CK, tail_logp_C, tail = target.rows(part)
        z_CV = logits_CV.div_(temperature)
        z_CK = z_CV.gather(1, ids_CK).masked_fill_(~valid_CK, FLOOR)
        z_CV.scatter_(1, ids_CK, FLOOR)
        rest_C = torch.logsumexp(z_CV, dim=1)
        kept_C = torch.logsumexp(z_CK, dim=1)
        all_C = kept_C if tail == "renormalise" else torch.logaddexp(kept_C, rest_C)
        p_CK, logq_CK = logp_CK.exp(), z_CK - all_C.unsqueeze(1)
        value_C = (p_CK * (logp_CK - logq_CK)).sum(dim=1)
        logq_tail_C, p_tail_C = rest_C - all_C, tail_logp_C.exp()
        if tail == "bucket":
            value_C += p_tail_C * (tail_logp_C - logq_tail_C)
        if not want_grad:
            return value_C, None
        m_C = p_CK.sum(dim=1) + p_tail_C
        outside_C = torch.zeros_like(rest_C) if tail == "renormalise" else m_C * logq_tail_C.exp() - p_tail_C
        grad_CV = z_CV.sub_(rest_C.unsqueeze(1)).exp_().mul_(outside_C.unsqueeze(1))
        grad_CV.scatter_(1, ids_CK, 0.0)  # where nothing is outside, the softmax over the rest is not 0 there
        grad_CK = (m_C.unsqueeze(1) * logq_CK.exp() - p_CK).masked_fill_(~valid_CK, 0.0)
        return value_C, grad_CV.scatter_add_(1, ids_CK, grad_CK).div_(temperature)

    total = frozen_head_total(student, mask_T, rows)
    return LossOut(total, mask_T.to(total.dtype).sum())
