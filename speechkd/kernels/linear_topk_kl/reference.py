"""Reference implementation of `linear_topk_kl`: all logits at once, gradients by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.kernels.linear_topk_kl.target import Target
from speechkd.kernels.logits import FLOOR, Logits, sum_kept, wide


def topk_kl_rows(logits_TV: Tensor, target: Target, temperature: float) -> Tensor:
    """KL of each row, [T], in nats, wide.

    The student's mass outside the K ids (`rest_T`) is summed over the other ids: 1 - (mass of the K ids) loses all digits when small.
    """
    z_TV = (wide(logits_TV) / temperature).clamp(min=FLOOR)
    z_TK = z_TV.gather(1, target.ids_TK).masked_fill(~target.valid_TK, FLOOR)
    rest_T = torch.logsumexp(z_TV.scatter(1, target.ids_TK, FLOOR), dim=1)
    kept_T = torch.logsumexp(z_TK, dim=1)
    all_T = kept_T if target.tail == "renormalise" else torch.logaddexp(kept_T, rest_T)
    rows_T = (target.logp_TK.exp() * (target.logp_TK - (z_TK - all_T.unsqueeze(1)))).sum(dim=1)
    if target.tail == "bucket":
        rows_T = rows_T + target.tail_logp_T.exp() * (target.tail_logp_T - (rest_T - all_T))
    return rows_T


def linear_topk_kl(student: Logits, target: Target, temperature: float, mask_T: Tensor | None) -> Tensor:
    """As documented in the package; rows that a mask leaves out are zeroed."""
    return sum_kept(topk_kl_rows(student.logits(), target, temperature), mask_T)
