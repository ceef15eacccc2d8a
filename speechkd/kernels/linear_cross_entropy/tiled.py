"""Cross-entropy by tiles of the vocabulary: a top-k KL whose teacher names one id and is certain."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.kernels.linear_topk_kl import tiled
from speechkd.kernels.linear_topk_kl.target import Target
from speechkd.kernels.logits import FLOOR, Head, wide


def linear_cross_entropy(student: Head, targets_T: Tensor, mask_T: Tensor | None) -> Tensor:
    """See the package; rows that a mask leaves out are zeroed."""
    certain_T1 = wide(student.hidden_TD.new_zeros(len(targets_T), 1))
    nothing_T = torch.full_like(certain_T1[:, 0], FLOOR)
    target = Target(targets_T.long().unsqueeze(1), torch.ones_like(certain_T1, dtype=torch.bool), certain_T1, nothing_T, "ignore")
    return tiled.linear_topk_kl(student, target, 1.0, mask_T)
