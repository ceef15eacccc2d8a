"""Chunked cross-entropy of an LM head."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from speechkd.kernels.chunks import head_total
from speechkd.kernels.linear_cross_entropy.rows import cross_entropy_rows_
from speechkd.kernels.logits import Head


def linear_cross_entropy(
    student: Head, targets_T: Tensor, mask_T: Tensor | None, rows_: Callable[..., Tensor] = cross_entropy_rows_
) -> Tensor:
    """See the package; rows that a mask leaves out are zeroed. `rows_`: what turns a chunk of logits into values and gradient."""

    def rows(logits_CV: Tensor, part: slice, want_grad: bool) -> Tensor:
        return rows_(logits_CV, targets_T[part], student.softcap, want_grad)

    return head_total(student, mask_T, rows)
