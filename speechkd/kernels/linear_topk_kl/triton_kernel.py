"""Top-k KL of one row of logits a program, and a live teacher's top-k log-probs. Needs Triton.

The ids that are kept leave the row first: their logits go to registers and -inf takes their place. What remains is the rest, whose
mass is summed as such: 1 - (mass of the kept ids) would lose all digits where it is small.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from speechkd.kernels.triton_logits import FLOOR, row_log_sum_exp, scaled, slope


@triton.jit
def log_add_exp(a, b):
    """log(exp(a) + exp(b)); FLOOR beside anything is nothing."""
    return tl.maximum(a, b) + tl.log(1.0 + tl.exp(-tl.abs(a - b)))


@triton.jit
def topk_kl(
    logits,
    ids,
    valid,
    logp,
    tail_logp,
    values,
    stride,
    V,
    K,
    softcap,
    temperature,
    RENORMALISE: tl.constexpr,
    BUCKET: tl.constexpr,
    WANT_GRAD: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """values[row] = KL(teacher || student); the row of `logits` becomes its gradient. Forms as in `chunked`."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    slots_K = tl.arange(0, BLOCK_K)
    slot_K = slots_K < K
    ids_K = tl.load(ids + row * K + slots_K, mask=slot_K, other=-1)
    known_K = (ids_K >= 0) & (ids_K < V)
    full_K = (tl.load(valid + row * K + slots_K, mask=slot_K, other=0) != 0) & slot_K
    live_K = full_K & known_K
    logp_K = tl.load(logp + row * K + slots_K, mask=slot_K, other=FLOOR).to(tl.float32)
    z_K = scaled(tl.load(logits + ids_K, mask=live_K, other=float("-inf")), softcap, temperature, CAPPED)
    tl.debug_barrier()  # all kept logits are read before the first is replaced
    tl.store(logits + ids_K, tl.full([BLOCK_K], float("-inf"), tl.float32).to(logits.dtype.element_ty), mask=known_K & slot_K)
    tl.debug_barrier()

    rest = row_log_sum_exp(logits, V, softcap, temperature, CAPPED, BLOCK)
    top = tl.maximum(tl.max(z_K, 0), FLOOR)
    kept = top + tl.log(tl.sum(tl.where(slot_K, tl.exp(z_K - top), 0.0), 0))
    whole = kept
    if not RENORMALISE:
        whole = log_add_exp(kept, rest)
    p_K = tl.where(slot_K, tl.exp(logp_K), 0.0)
    tail = tl.load(tail_logp + row).to(tl.float32)
    p_tail = tl.exp(tail)
    value = tl.sum(p_K * (logp_K - (z_K - whole)), 0)
    if BUCKET:
        value += p_tail * (tail - (rest - whole))
    unknown = tl.sum((full_K & (known_K == 0)).to(tl.int32), 0)
    tl.store(values + row, tl.where(unknown == 0, value, float("nan")))  # an id outside the vocabulary must not pass for a value

    if WANT_GRAD:
        m = tl.sum(p_K, 0) + p_tail
        outside = 0.0
        if not RENORMALISE:
            outside = m * tl.exp(rest - whole) - p_tail
        for start in range(0, V, BLOCK):
            cols_B = start + tl.arange(0, BLOCK)
            inside_B = cols_B < V
            z_B = scaled(tl.load(logits + cols_B, mask=inside_B, other=float("-inf")), softcap, temperature, CAPPED)
            # where nothing is outside, the softmax over the rest is not 0 at the ids that left
            grad_B = tl.where(z_B == FLOOR, 0.0, outside * tl.exp(z_B - rest)) * slope(z_B, softcap, temperature, CAPPED)
            tl.store(logits + cols_B, grad_B.to(logits.dtype.element_ty), mask=inside_B)
        tl.debug_barrier()
        grad_K = (m * tl.exp(z_K - whole) - p_K) * slope(z_K, softcap, temperature, CAPPED)
        tl.store(logits + ids_K, grad_K.to(logits.dtype.element_ty), mask=live_K)


@triton.jit
def teacher_topk(
    logits,
    ids,
    logp,
    tail_logp,
    stride,
    U,
    K,
    softcap,
    temperature,
    CAPPED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Log-probs of the row's K ids and log of the mass outside them; the row of `logits` is used up."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    slots_K = tl.arange(0, BLOCK_K)
    slot_K = slots_K < K
    ids_K = tl.load(ids + row * K + slots_K, mask=slot_K, other=0)
    z_K = scaled(tl.load(logits + ids_K, mask=slot_K, other=float("-inf")), softcap, temperature, CAPPED)
    tl.debug_barrier()
    tl.store(logits + ids_K, tl.full([BLOCK_K], float("-inf"), tl.float32).to(logits.dtype.element_ty), mask=slot_K)
    tl.debug_barrier()
    rest = row_log_sum_exp(logits, U, softcap, temperature, CAPPED, BLOCK)
    top = tl.max(z_K, 0)
    whole = log_add_exp(top + tl.log(tl.sum(tl.where(slot_K, tl.exp(z_K - top), 0.0), 0)), rest)
    tl.store(logp + row * K + slots_K, z_K - whole, mask=slot_K)
    tl.store(tail_logp + row, tl.where(rest <= FLOOR / 2, float("-inf"), rest - whole))
