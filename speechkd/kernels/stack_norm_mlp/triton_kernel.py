"""A projector's work between its matrix products: bias, activation, gate. Needs Triton."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

SILU, GELU = range(2)
_SILU = tl.constexpr(SILU)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """(value, slope) of the activation, float32."""
    if KIND == _SILU:
        s = 1.0 / (1.0 + tl.exp(-x))
        return x * s, s * (1.0 + x * (1.0 - s))
    else:  # GELU, the exact form
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return x * below, below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def biased(z, bias, cols_B, inside_B, BIASED: tl.constexpr):
    """A block of z + bias, float32."""
    z_B = tl.load(z + cols_B, mask=inside_B, other=0.0).to(tl.float32)
    if BIASED:
        z_B += tl.load(bias + cols_B, mask=inside_B, other=0.0).to(tl.float32)
    return z_B


@triton.jit
def activate(
    z,
    bias,
    up,
    up_bias,
    out,
    z_stride,
    up_stride,
    out_stride,
    H,
    KIND: tl.constexpr,
    BIASED: tl.constexpr,
    UP_BIASED: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = act(z + bias) (* (up + up_bias)); `out` may be `z`."""
    row = tl.program_id(0).to(tl.int64)
    cols_B = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_B = cols_B < H
    a_B, _ = activated(biased(z + row * z_stride, bias, cols_B, inside_B, BIASED), KIND)
    if GATED:
        a_B *= biased(up + row * up_stride, up_bias, cols_B, inside_B, UP_BIASED)
    tl.store(out + row * out_stride + cols_B, a_B.to(out.dtype.element_ty), mask=inside_B)


@triton.jit
def activate_backward(
    z,
    bias,
    up,
    up_bias,
    grads,
    z_stride,
    up_stride,
    grad_stride,
    H,
    KIND: tl.constexpr,
    BIASED: tl.constexpr,
    UP_BIASED: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """In place: z and up become their gradients, the output's gradient becomes the output again (the next layer's weight asks for it)."""
    row = tl.program_id(0).to(tl.int64)
    cols_B = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_B = cols_B < H
    z += row * z_stride
    grads += row * grad_stride
    a_B, slope_B = activated(biased(z, bias, cols_B, inside_B, BIASED), KIND)
    g_B = tl.load(grads + cols_B, mask=inside_B, other=0.0).to(tl.float32)
    if GATED:
        up += row * up_stride
        u_B = biased(up, up_bias, cols_B, inside_B, UP_BIASED)
        tl.store(up + cols_B, (g_B * a_B).to(up.dtype.element_ty), mask=inside_B)
        g_B, a_B = g_B * u_B, a_B * u_B
    tl.store(z + cols_B, (g_B * slope_B).to(z.dtype.element_ty), mask=inside_B)
    tl.store(grads + cols_B, a_B.to(grads.dtype.element_ty), mask=inside_B)
