"""What a projector does before its first matrix product, in one pass over the encoder's states, by Triton. Imports without Triton.

Weighted sum of L layers, stacking of k frames, LayerNorm or RMSNorm: each state is read once, x_hat is written once. Gamma and beta are
not applied here: they belong into the first weight (W gamma, and W beta in the bias), where they cost nothing a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels.triton_launch import DTYPES, LAUNCH, Launch, launch, power_of_two

Norm = Literal["none", "layer", "rms"]


class Stacks(NamedTuple):
    """Which frames make which row: rows hold valid frames only, utterance after utterance."""

    starts_R: Tensor
    """int64: first frame of each row, counted over the flattened [B, F] frames"""
    frames_R: Tensor
    """int32, 1 to k: how many of the row's frames are inside the window; the rest is 0"""


def stacks(rows_R: Tensor, window: int, stack: int) -> Stacks:
    """The stacks at flat positions `rows_R` of [B, ceil(window / stack)], in padded frames [B, window, C]."""
    positions = -(-window // stack)
    first_R = rows_R % positions * stack
    return Stacks(rows_R // positions * window + first_R, (window - first_R).clamp(max=stack).int())


class Prologue(NamedTuple):
    """Where the layers' states are and what is done with them."""

    states: Sequence[Tensor]
    """L tensors [B, F, C] of one type and layout; also a stacked [L, B, F, C]"""
    weights_L: Tensor | None
    """of the sum (after their softmax); None: there is one state, taken as it is"""
    rows: Stacks
    stack: int
    norm: Norm = "none"
    eps: float = 1e-5
    per_frame: bool = False
    """the norm runs over each frame's C values and a last partial stack is filled up behind it; otherwise over the stacked row"""
    normalise: bool = False
    """bring each layer's frames to zero mean and unit variance before the sum"""
    layer_eps: float = 1e-5

    @property
    def width(self) -> int:
        """C: of one frame."""
        return self.states[0].shape[-1]

    def check(self) -> None:
        """Raises InputError for states that one kernel cannot walk together."""
        first = self.states[0]
        same = all(
            s.shape == first.shape and s.dtype == first.dtype and s.is_contiguous() and s.device == first.device for s in self.states
        )
        if not same or first.dtype not in DTYPES:
            raise InputError("states must be contiguous, of one shape, device and type among float32, bfloat16 and float16")
        if len(self.states) != (1 if self.weights_L is None else len(self.weights_L)):
            raise InputError(f"{len(self.states)} states need as many weights; one state needs none")

    def layers(self) -> tuple[Tensor, bool]:
        """Where each layer begins, in elements from the first (they need not lie side by side); whether all are multiples of 8."""
        first = self.states[0]
        places = [(state.data_ptr() - first.data_ptr()) // first.element_size() for state in self.states]
        return torch.tensor(places, dtype=torch.int64, device=first.device), all(place % 8 == 0 for place in places)

    @property
    def fits(self) -> bool:
        """Whether one program can hold a stacked row."""
        return power_of_two(self.stack) * power_of_two(self.width) <= LAUNCH["stack_norm"][-1].width

    def launch(self) -> tuple[int, int, Launch]:
        """(frames a block, columns a block, row of the table)."""
        frames, columns = power_of_two(self.stack), power_of_two(self.width)
        return frames, columns, launch("stack_norm", frames * columns)


_NORM = {"none": "NO_NORM", "layer": "LAYER_NORM", "rms": "RMS_NORM"}


class Normed(NamedTuple):
    """x_hat [R, S] and, in float32, what each row, or each of its frames, was multiplied with: all that backward needs."""

    x_hat_RS: Tensor
    rstd_X: Tensor


def stack_norm(prologue: Prologue, dtype: torch.dtype) -> Normed:
    """The rows of a projector's first matrix product, S = stack * C, computed in float32 and written as `dtype`.

    The norm runs over all S values of a row, the zeros of a last partial stack with them, or with `per_frame` over each frame's.
    Raises InputError for states that do not fit together, and where a stack is wider than one program can hold.
    """
    prologue.check()
    first, (starts_R, frames_R) = prologue.states[0], prologue.rows
    R, S = len(starts_R), prologue.stack * prologue.width
    frames, columns, by = prologue.launch()
    layers_L, aligned = prologue.layers()
    x_hat_RS = torch.empty(R, S, dtype=dtype, device=first.device)
    rstd_X = torch.ones(R * prologue.stack if prologue.per_frame else R, dtype=torch.float32, device=first.device)
    if R == 0:
        return Normed(x_hat_RS, rstd_X)
    from speechkd.kernels.layer_sum import triton_kernel

    with torch.cuda.device_of(first):
        triton_kernel.stack_norm[(R,)](
            first,
            layers_L,
            rstd_X if prologue.weights_L is None else prologue.weights_L.contiguous(),
            starts_R,
            frames_R,
            x_hat_RS,
            rstd_X,
            prologue.width,
            len(prologue.states),
            prologue.width,
            prologue.stack,
            prologue.eps,
            prologue.layer_eps,
            NORM=getattr(triton_kernel, _NORM[prologue.norm]),
            PER_FRAME=prologue.per_frame and prologue.norm != "none",
            MIXED=prologue.weights_L is not None,
            NORMALISE=prologue.normalise,
            ALIGNED=aligned,
            FRAMES=frames,
            BLOCK_C=columns,
            num_warps=by.num_warps,
            num_stages=by.num_stages,
        )
    return Normed(x_hat_RS, rstd_X)


def stack_norm_backward_(grad_RS: Tensor, normed: Normed, prologue: Prologue, want_input: bool) -> Tensor | None:
    """Gradient of the mix's weights, [L] in float32; None without weights.

    Args:
        grad_RS: d / d x_hat, contiguous; with `want_input` it becomes the gradient of the summed, stacked, not yet normalised rows.
        normed: what `stack_norm` returned for `prologue`.
    """
    first, (starts_R, frames_R) = prologue.states[0], prologue.rows
    R, L = len(starts_R), len(prologue.states)
    mixed = prologue.weights_L is not None
    if not grad_RS.is_contiguous() or grad_RS.shape != normed.x_hat_RS.shape:
        raise InputError(f"grad_RS must be contiguous and {list(normed.x_hat_RS.shape)}, is {list(grad_RS.shape)}")
    share_RL = torch.zeros(R, L, dtype=torch.float32, device=first.device)
    if R > 0 and (mixed or want_input):
        from speechkd.kernels.layer_sum import triton_kernel

        frames, columns, by = prologue.launch()
        layers_L, aligned = prologue.layers()
        with torch.cuda.device_of(first):
            triton_kernel.stack_norm_backward[(R,)](
                grad_RS,
                normed.x_hat_RS,
                normed.rstd_X,
                first,
                layers_L,
                starts_R,
                frames_R,
                share_RL,
                prologue.width,
                L,
                prologue.width,
                prologue.stack,
                prologue.layer_eps,
                NORM=getattr(triton_kernel, _NORM[prologue.norm]),
                PER_FRAME=prologue.per_frame and prologue.norm != "none",
                NORMALISE=prologue.normalise,
                ALIGNED=aligned,
                WANT_INPUT=want_input,
                WANT_WEIGHTS=mixed,
                FRAMES=frames,
                BLOCK_C=columns,
                num_warps=by.num_warps,
                num_stages=by.num_stages,
            )
    return share_RL.sum(0) if mixed else None  # a fixed order of summation: two runs give the same bits
