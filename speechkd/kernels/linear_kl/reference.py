"""Reference: all logits of both models at once, gradients by autograd."""

from __future__ import annotations

from torch import Tensor

from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Logits, sum_kept


def linear_kl(student: Logits, teacher: Logits, how: Divergence, mask_T: Tensor | None) -> Tensor:
    """See the package; rows that a mask leaves out are zeroed."""
    return sum_kept(how.rows(student.logits(), teacher.logits()), mask_T)
