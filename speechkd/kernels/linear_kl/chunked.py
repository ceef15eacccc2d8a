"""Chunked divergence of an LM head: both models' logits for some rows, gradient in closed form."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from speechkd.kernels.chunks import head_total
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.linear_kl.rows import divergence_rows_
from speechkd.kernels.logits import Head, Logits

PRODUCT_ROWS = 512
"""Of 256 rows, three products with 151,936 ids take 1.25 times as long on a CPU, which lays the weight out anew for each; there is no form
by tiles here, because the gradient of a tile depends on both models' sums over all"""


def linear_kl(
    student: Head, teacher: Logits, how: Divergence, mask_T: Tensor | None, rows_: Callable[..., Tensor] = divergence_rows_
) -> Tensor:
    """See the package; rows that a mask leaves out are zeroed. `rows_`: what turns a chunk of logits into values and gradient."""

    def rows(logits_CV: Tensor, part: slice, want_grad: bool) -> Tensor:
        return rows_(logits_CV, teacher.raw(part), how, student.softcap, teacher.softcap, want_grad)

    return head_total(student, mask_T, rows, PRODUCT_ROWS)
