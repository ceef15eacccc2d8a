"""Reference: all logits of both models at once, gradients by autograd."""

from __future__ import annotations

from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Logits, sum_rows


def linear_kl(student: Logits, teacher: Logits, mask_T: Tensor, how: Divergence) -> LossOut:
    """See the package; masked-out rows have been zeroed."""
    return sum_rows(how.rows(student.logits(), teacher.logits()), mask_T)
