"""Chunked top-k KL of an LM head."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from speechkd.kernels.chunks import head_total
from speechkd.kernels.linear_topk_kl.rows import topk_kl_rows_
from speechkd.kernels.linear_topk_kl.target import Target
from speechkd.kernels.logits import Head


def linear_topk_kl(
    student: Head, target: Target, temperature: float, mask_T: Tensor | None, rows_: Callable[..., Tensor] = topk_kl_rows_
) -> Tensor:
    """See the package; rows that a mask leaves out are zeroed. `rows_`: what turns a chunk of logits into values and gradient."""

    def rows(logits_CV: Tensor, part: slice, want_grad: bool) -> Tensor:
        return rows_(logits_CV, target.rows(part), temperature, student.softcap, want_grad)

    return head_total(student, mask_T, rows)
