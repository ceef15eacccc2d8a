"""A few rows of all layers at a time: the sum stays in cache, every state is read once forward and once backward, nothing else is kept.

    out = sum_l w_l h_l,   dw_l = <dout, h_l>
Normalised states are made again in backward, a block at a time: kept, they would be a second copy of all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm

from speechkd.kernels.logits import wide

BLOCK = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Wide values summed at a time: 512 KiB stay in a core's cache, 16 MiB in a GPU's"""


def layer_sum(states_LBFD: Sequence[Tensor], weights_L: Tensor, normalise: bool) -> Tensor:
    """See the package."""
    out: Tensor = _LayerSum.apply(wide(weights_L), normalise, *states_LBFD)
    return out


def _blocks(states: Sequence[Tensor], normalise: bool) -> Iterator[tuple[slice, list[Tensor]]]:
    """(rows, those rows [X, D] of every state), normalised if asked."""
    D = states[0].shape[-1]
    rows = [state.reshape(-1, D) for state in states]
    step = max(1, BLOCK.get(states[0].device.type, BLOCK["cuda"]) // max(D, 1))
    for start in range(0, rows[0].shape[0], step):
        part = slice(start, start + step)
        found = [state_XD[part] for state_XD in rows]
        yield part, [layer_norm(wide(x_XD), (D,)) for x_XD in found] if normalise else found


class _LayerSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_L: Tensor, normalise: bool, *states: Tensor) -> Tensor:
        ctx.normalise = normalise
        ctx.save_for_backward(weights_L, *states)
        out_BFD = torch.empty(states[0].shape, dtype=states[0].dtype, device=states[0].device)
        out_XD = out_BFD.view(-1, out_BFD.shape[-1])
        each = weights_L.unbind()
        for part, found in _blocks(states, normalise):
            sum_XD = wide(found[0]) * each[0]
            for weight, x_XD in zip(each[1:], found[1:], strict=True):
                sum_XD.addcmul_(wide(x_XD), weight)
            out_XD[part] = sum_XD
        return out_BFD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BFD: Tensor) -> tuple[Tensor | None, ...]:
        weights_L, *states = ctx.saved_tensors
        grad_XD = grad_BFD.reshape(-1, grad_BFD.shape[-1])
        grad_L = torch.zeros_like(weights_L)
        for part, found in _blocks(states, ctx.normalise):
            block_N = wide(grad_XD[part]).flatten()
            grad_L += torch.stack([block_N.dot(wide(x_XD).flatten()) for x_XD in found])
        return grad_L, None, *[None] * len(states)
