"""Reference: all logits at once, torch's cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from speechkd.kernels.logits import Logits, sum_kept, wide


def cross_entropy_rows(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """- log softmax(logits)[target] of each row, [T], in nats, wide."""
    return cross_entropy(wide(logits_TV), targets_T, reduction="none")


def linear_cross_entropy(student: Logits, targets_T: Tensor, mask_T: Tensor | None) -> Tensor:
    """See the package; rows that a mask leaves out are zeroed."""
    return sum_kept(cross_entropy_rows(student.logits(), targets_T), mask_T)
