"""Chunked cross-entropy of an LM head."""

from __future__ import annotations

from torch import Tensor

from speechkd.kernels.chunks import head_total
from speechkd.kernels.linear_cross_entropy.rows import cross_entropy_rows_
from speechkd.kernels.logits import Head


def linear_cross_entropy(student: Head, targets_T: Tensor, mask_T: Tensor | None) -> Tensor:
    """See the package; rows that a mask leaves out are zeroed."""

    def rows(logits_CV: Tensor, part: slice, want_grad: bool) -> Tensor:
        return cross_entropy_rows_(logits_CV, targets_T[part], student.softcap, want_grad)

    return head_total(student, mask_T, rows)
