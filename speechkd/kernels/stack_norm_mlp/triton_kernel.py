"""A projector's work between its matrix products: mix of layers + frame stacking + norm; bias + activation (+ gate). Needs Triton."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

NO_NORM, LAYER_NORM, RMS_NORM = range(3)
SILU, GELU = range(2)
_LAYER_NORM, _RMS_NORM, _SILU = tl.constexpr(LAYER_NORM), tl.constexpr(RMS_NORM), tl.constexpr(SILU)


@triton.jit
def layer_state(states, layers, layer, offsets_JC, real_JC, C, layer_eps, NORMALISE: tl.constexpr, ALIGNED: tl.constexpr):
    """The frames of one stack in one layer, float32; with NORMALISE each frame has zero mean and unit variance.

    ALIGNED: all layers begin at a multiple of 8 elements from the first, so loads are wide.
    """
    place = tl.load(layers + layer)
    if ALIGNED:
        place = tl.multiple_of(place, 8)
    state_JC = states + place + offsets_JC
    h_JC = tl.load(state_JC, mask=real_JC, other=0.0).to(tl.float32)
    if NORMALISE:
        h_JC = tl.where(real_JC, h_JC - (tl.sum(h_JC, 1) / C)[:, None], 0.0)
        h_JC *= (1.0 / tl.sqrt(tl.sum(h_JC * h_JC, 1) / C + layer_eps))[:, None]
    return h_JC


@triton.jit
def stack_norm(
    states,
    layers,
    weights,
    starts,
    frames,
    x_hat,
    rstds,
    frame_stride,
    L,
    C,
    k,
    eps,
    layer_eps,
    NORM: tl.constexpr,
    MIXED: tl.constexpr,
    NORMALISE: tl.constexpr,
    ALIGNED: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One stacked row a program: the weighted sum of its frames in all layers, each read once, normalised without gamma and beta."""
    row = tl.program_id(0).to(tl.int64)
    j_J1, c_1C = tl.arange(0, FRAMES)[:, None], tl.arange(0, BLOCK_C)[None, :]
    inside_JC = (j_J1 < k) & (c_1C < C)
    real_JC = (j_J1 < tl.load(frames + row)) & inside_JC
    offsets_JC = (tl.load(starts + row) + j_J1) * frame_stride + c_1C
    if MIXED:
        x_JC = tl.zeros([FRAMES, BLOCK_C], tl.float32)
        for layer in range(0, L):
            h_JC = layer_state(states, layers, layer, offsets_JC, real_JC, C, layer_eps, NORMALISE, ALIGNED)
            x_JC += tl.load(weights + layer).to(tl.float32) * h_JC
    else:
        x_JC = layer_state(states, layers, 0, offsets_JC, real_JC, C, layer_eps, NORMALISE, ALIGNED)
    S = k * C
    if NORM == _LAYER_NORM:
        mean = tl.sum(x_JC) / S
        x_JC = tl.where(inside_JC, x_JC - mean, 0.0)
    if (NORM == _LAYER_NORM) | (NORM == _RMS_NORM):
        rstd = 1.0 / tl.sqrt(tl.sum(x_JC * x_JC) / S + eps)
        tl.store(rstds + row, rstd)
        x_JC *= rstd
    tl.store(x_hat + row * S + j_J1 * C + c_1C, x_JC.to(x_hat.dtype.element_ty), mask=inside_JC)


@triton.jit
def stack_norm_backward(
    grads,
    x_hat,
    rstds,
    states,
    layers,
    starts,
    frames,
    weight_grads,
    frame_stride,
    L,
    C,
    k,
    layer_eps,
    NORM: tl.constexpr,
    NORMALISE: tl.constexpr,
    ALIGNED: tl.constexpr,
    WANT_INPUT: tl.constexpr,
    WANT_WEIGHTS: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`grads` arrives as d / d x_hat and leaves as d / d x (WANT_INPUT); weight_grads[row, layer] is the row's share of the mix's."""
    row = tl.program_id(0).to(tl.int64)
    j_J1, c_1C = tl.arange(0, FRAMES)[:, None], tl.arange(0, BLOCK_C)[None, :]
    inside_JC = (j_J1 < k) & (c_1C < C)
    S = k * C
    places_JC = row * S + j_J1 * C + c_1C
    g_JC = tl.load(grads + places_JC, mask=inside_JC, other=0.0).to(tl.float32)
    if (NORM == _LAYER_NORM) | (NORM == _RMS_NORM):
        x_JC = tl.load(x_hat + places_JC, mask=inside_JC, other=0.0).to(tl.float32)
        along = tl.sum(g_JC * x_JC) / S
        if NORM == _LAYER_NORM:
            g_JC -= tl.sum(g_JC) / S
        g_JC = tl.load(rstds + row) * (g_JC - x_JC * along)
    if WANT_INPUT:
        tl.store(grads + places_JC, g_JC.to(grads.dtype.element_ty), mask=inside_JC)
    if WANT_WEIGHTS:
        real_JC = (j_J1 < tl.load(frames + row)) & inside_JC  # the layers' states are 0 elsewhere, so g is not masked
        offsets_JC = (tl.load(starts + row) + j_J1) * frame_stride + c_1C
        for layer in range(0, L):
            h_JC = layer_state(states, layers, layer, offsets_JC, real_JC, C, layer_eps, NORMALISE, ALIGNED)
            tl.store(weight_grads + row * L + layer, tl.sum(g_JC * h_JC))


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
