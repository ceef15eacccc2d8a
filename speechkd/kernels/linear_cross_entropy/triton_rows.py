"""Cross-entropy of a chunk of rows in two passes over its logits, in place, by Triton. Imports without Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.kernels.triton_launch import check_rows_tensor, launch


def cross_entropy_rows_(logits_CV: Tensor, targets_C: Tensor, softcap: float | None, want_grad: bool) -> Tensor:
    """-log softmax(cap(logits))[target] of each row, [C], float32, in nats; the logits become its gradient with respect to them.

    Args:
        logits_CV: the head's raw product, float32, bfloat16 or float16; its content is gone afterwards.
        targets_C: ids; one outside [0, V) gives the row the value NaN and touches no memory.
        softcap: Gemma 2's final logit soft-capping, None without.
        want_grad: write the gradient; False leaves the logits as they are.
    """
    check_rows_tensor(logits_CV, "logits_CV")
    C, V = logits_CV.shape
    value_C = torch.empty(C, dtype=torch.float32, device=logits_CV.device)
    if C == 0:
        return value_C
    from speechkd.kernels.linear_cross_entropy.triton_kernel import cross_entropy

    by = launch("cross_entropy", V)
    with torch.cuda.device_of(logits_CV):
        cross_entropy[(C,)](
            logits_CV,
            targets_C.contiguous(),
            value_C,
            logits_CV.stride(0),
            V,
            float(softcap or 1.0),
            WANT_GRAD=want_grad,
            CAPPED=softcap is not None,
            BLOCK=by.block,
            num_warps=by.num_warps,
            num_stages=by.num_stages,
        )
    return value_C
