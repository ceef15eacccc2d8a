"""A weighted sum of layers, frame stacking and a norm: what a projector does before its first matrix product. Needs Triton."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

NO_NORM, LAYER_NORM, RMS_NORM = range(3)
_LAYER_NORM, _RMS_NORM = tl.constexpr(LAYER_NORM), tl.constexpr(RMS_NORM)


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
    PER_FRAME: tl.constexpr,
    MIXED: tl.constexpr,
    NORMALISE: tl.constexpr,
    ALIGNED: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One stacked row a program: the weighted sum of its frames in all layers, each read once, normalised without gamma and beta.

    PER_FRAME: the norm runs over each frame's C values, and frames behind the window stay 0; otherwise over the k * C of the row.
    """
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
    if PER_FRAME:
        if NORM == _LAYER_NORM:
            x_JC = tl.where(inside_JC, x_JC - (tl.sum(x_JC, 1) / C)[:, None], 0.0)  # where no frame is, the mean is 0
        rstd_J = 1.0 / tl.sqrt(tl.sum(x_JC * x_JC, 1) / C + eps)
        frames_J = tl.arange(0, FRAMES)
        tl.store(rstds + row * k + frames_J, rstd_J, mask=frames_J < k)
        x_JC *= rstd_J[:, None]
    elif (NORM == _LAYER_NORM) | (NORM == _RMS_NORM):
        if NORM == _LAYER_NORM:
            x_JC = tl.where(inside_JC, x_JC - tl.sum(x_JC) / S, 0.0)
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
    PER_FRAME: tl.constexpr,
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
    if PER_FRAME:
        x_JC = tl.load(x_hat + places_JC, mask=inside_JC, other=0.0).to(tl.float32)
        along_J = tl.sum(g_JC * x_JC, 1) / C
        if NORM == _LAYER_NORM:
            g_JC -= (tl.sum(g_JC, 1) / C)[:, None]
        frames_J = tl.arange(0, FRAMES)
        rstd_J = tl.load(rstds + row * k + frames_J, mask=frames_J < k, other=0.0)
        g_JC = rstd_J[:, None] * (g_JC - x_JC * along_J[:, None])
    elif (NORM == _LAYER_NORM) | (NORM == _RMS_NORM):
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
