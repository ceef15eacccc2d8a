"""Weighted sum of an encoder's layers, with or without bringing every layer to zero mean and unit variance first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels import dispatch
from speechkd.kernels.layer_sum import blocked, reference, triton_sum
from speechkd.kernels.triton_launch import obstacle


def _needs_frozen_states(first_input: object) -> str | None:
    """The blocked form makes no gradient of the states."""
    assert isinstance(first_input, Sequence)
    wanted = torch.is_grad_enabled() and any(states.requires_grad for states in first_input)
    return "the states want a gradient" if wanted else None


def _triton_obstacle(first_input: object) -> str | None:
    assert isinstance(first_input, Sequence)
    return _needs_frozen_states(first_input) or obstacle(first_input[0])


_IMPLEMENTATIONS = {
    "triton": dispatch.Implementation(triton_sum.layer_sum, _triton_obstacle),
    "blocked": dispatch.Implementation(blocked.layer_sum, _needs_frozen_states),
    "reference": dispatch.Implementation(reference.layer_sum, dispatch.no_obstacle),
}


def layer_sum(
    states_LBFD: Sequence[Tensor], weights_L: Tensor, normalise: bool = False, impl: str = "auto", frames_X: Tensor | None = None
) -> Tensor:
    """sum_l w_l h_l over L states [B, F, D] of one shape and dtype, [B, F, D] in that dtype; [X, D] of some frames.

    Args:
        weights_L: one weight a state, wide.
        normalise: every state's D values are brought to zero mean and unit variance first (LayerNorm without weights).
        impl: auto, triton (on a GPU) or blocked (both read every state once, in blocks of rows; the states get no gradient), or reference.
        frames_X: int64, flat positions in [B, F] that are summed and nothing else is read; fast where they come in runs. None: all.
    Raises InputError where weights and states differ in number, or for an unknown `impl`.
    """
    if not states_LBFD or weights_L.shape != (len(states_LBFD),):
        raise InputError(f"{len(states_LBFD)} states need as many weights, given are {list(weights_L.shape)}")
    run = dispatch.pick("layer_sum", impl, _IMPLEMENTATIONS, states_LBFD)
    return run(states_LBFD, weights_L, normalise, frames_X)
