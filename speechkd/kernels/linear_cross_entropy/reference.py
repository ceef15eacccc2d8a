"""Reference: all logits at once, torch's cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from speechkd.core.types import LossOut
from speechkd.kernels.logits import head_logits, sum_rows, wide


def cross_entropy_rows(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """- log softmax(logits)[target] of each row, [T], in nats, wide."""
    return cross_entropy(wide(logits_TV), targets_T, reduction="none")


def linear_cross_entropy(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, mask_T: Tensor, softcap: float | None) -> LossOut:
    """See the package; masked-out rows have been zeroed."""
    return sum_rows(cross_entropy_rows(head_logits(hidden_TD, weight_VD, softcap), targets_T), mask_T)
