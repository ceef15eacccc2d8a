"""What the row kernels share: a logit after soft cap and temperature, its slope, log-sum-exp of a row. Needs Triton.

Column offsets fit 32 bits (a row is a vocabulary); row offsets do not (8,192 rows x 262,144 ids) and are 64-bit.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from speechkd.kernels import logits

FLOOR = tl.constexpr(logits.FLOOR)


@triton.jit
def scaled(x, softcap, temperature, CAPPED: tl.constexpr):
    """A stored logit after soft cap and temperature, float32, at least FLOOR; -inf stays impossible under a cap, NaN stays NaN."""
    x = x.to(tl.float32)
    z = x
    if CAPPED:
        z = softcap * (1.0 - 2.0 / (tl.exp(2.0 * x / softcap) + 1.0))  # tanh, saturating at both ends
    z = z / temperature
    z = tl.where(x == float("-inf"), FLOOR, z)
    return tl.where(z < FLOOR, FLOOR, z)


@triton.jit
def slope(z, softcap, temperature, CAPPED: tl.constexpr):
    """d scaled / d x, from its value."""
    if CAPPED:
        tanh = z * temperature / softcap
        return tl.where(z == FLOOR, 0.0, (1.0 - tanh * tanh) / temperature)
    return tl.zeros_like(z) + 1.0 / temperature


@triton.jit
def row_log_sum_exp(row, width, softcap, temperature, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    """log sum exp of one row, read once: a running maximum, and sums in one lane each so that long rows lose no digits."""
    top = tl.full([], FLOOR, tl.float32)
    mass_B = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        cols_B = start + tl.arange(0, BLOCK)
        inside_B = cols_B < width
        z_B = scaled(tl.load(row + cols_B, mask=inside_B, other=float("-inf")), softcap, temperature, CAPPED)
        now = tl.maximum(top, tl.max(z_B, 0))
        mass_B = mass_B * tl.exp(top - now) + tl.where(inside_B, tl.exp(z_B - now), 0.0)
        top = now
    return top + tl.log(tl.sum(mass_B, 0))
