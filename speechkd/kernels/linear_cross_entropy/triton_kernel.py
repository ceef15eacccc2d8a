"""Cross-entropy of one row of logits a program: log-sum-exp, then softmax - onehot over the logits. Needs Triton."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from speechkd.kernels.triton_logits import row_log_sum_exp, scaled, slope


@triton.jit
def cross_entropy(
    logits,
    targets,
    values,
    stride,
    V,
    softcap,
    WANT_GRAD: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """values[row] = log sum exp - logit of the target; the row of `logits` becomes its gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    known = (target >= 0) & (target < V)
    z = scaled(tl.load(logits + target, mask=known, other=0.0), softcap, 1.0, CAPPED)
    whole = row_log_sum_exp(logits, V, softcap, 1.0, CAPPED, BLOCK)
    tl.store(values + row, tl.where(known, whole - z, float("nan")))  # an id outside the vocabulary must not pass for a value
    if WANT_GRAD:
        tl.debug_barrier()  # every warp has read the target's logit before one writes over it
        for start in range(0, V, BLOCK):
            cols_B = start + tl.arange(0, BLOCK)
            inside_B = cols_B < V
            z_B = scaled(tl.load(logits + cols_B, mask=inside_B, other=float("-inf")), softcap, 1.0, CAPPED)
            grad_B = (tl.exp(z_B - whole) - tl.where(cols_B == target, 1.0, 0.0)) * slope(z_B, softcap, 1.0, CAPPED)
            tl.store(logits + cols_B, grad_B.to(logits.dtype.element_ty), mask=inside_B)
