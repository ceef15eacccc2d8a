"""Reference: all logits of both models at once, gradients by autograd."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import head_logits, sum_rows


class Logits(Protocol):
    """Anything that computes a teacher's logits for some rows."""

    def logits(self, part: slice = slice(None)) -> Tensor:
        """Logits of some rows, wide, soft-capped."""


class Head(NamedTuple):
    """Hidden states and the LM head applied to them."""

    hidden_TD: Tensor
    weight_VD: Tensor
    softcap: float | None

    def logits(self, part: slice = slice(None)) -> Tensor:
        """Logits of some rows, wide, soft-capped."""
        return head_logits(self.hidden_TD[part], self.weight_VD, self.softcap)


def linear_kl(student: Head, teacher: Logits, mask_T: Tensor, how: Divergence) -> LossOut:
    """See the package; masked-out rows have been zeroed."""
    return sum_rows(how.rows(student.logits(), teacher.logits()), mask_T)
