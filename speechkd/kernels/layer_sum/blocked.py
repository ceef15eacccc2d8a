"""A few rows of all layers at a time: the sum stays in cache, every state is read once forward and once backward, nothing else is kept.

    out = sum_l w_l h_l,   dw_l = <dout, h_l>
Of normalised states, n_l = (h_l - mean) * scale, the mean and scale of each row are kept, never the states: they would be a second copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechkd.kernels.logits import wide

BLOCK = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Wide values summed at a time: 512 KiB stay in a core's cache, 16 MiB in a GPU's"""


EPS = 1e-5
"""As `layer_norm`'s default"""


def layer_sum(states_LBFD: Sequence[Tensor], weights_L: Tensor, normalise: bool, frames_X: Tensor | None) -> Tensor:
    """See the package."""
    out: Tensor = _LayerSum.apply(wide(weights_L), normalise, frames_X, *states_LBFD)
    return out


def _blocks(states: Sequence[Tensor], frames_X: Tensor | None) -> Iterator[tuple[slice, list[Tensor]]]:
    """(rows of the sum, those frames [X, D] of every state)."""
    D = states[0].shape[-1]
    rows = [state.reshape(-1, D) for state in states]
    step = max(1, BLOCK.get(states[0].device.type, BLOCK["cuda"]) // max(D, 1))
    for begin, end, first in _runs(frames_X, rows[0].shape[0]):
        for start in range(begin, end, step):
            part = slice(start, min(start + step, end))
            if first is None:
                yield part, [state_XD.index_select(0, frames_X[part]) for state_XD in rows]  # type: ignore[index]
            else:
                yield part, [state_XD[part.start - begin + first : part.stop - begin + first] for state_XD in rows]


def _runs(frames_X: Tensor | None, frames: int) -> list[tuple[int, int, int | None]]:
    """(first and last row of the sum, its frame) where frames follow each other; no frame on a GPU, which would wait for the answer."""
    if frames_X is None or not len(frames_X):
        return [(0, frames if frames_X is None else 0, 0)]
    if frames_X.device.type != "cpu":
        return [(0, len(frames_X), None)]
    return _runs_on_a_cpu(frames_X)


def _runs_on_a_cpu(frames_X: Tensor) -> list[tuple[int, int, int | None]]:
    starts = [0, *((frames_X.diff() != 1).nonzero().squeeze(1) + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(frames_X)], frames_X[starts].tolist(), strict=True))


class _LayerSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_L: Tensor, normalise: bool, frames_X: Tensor | None, *states: Tensor) -> Tensor:
        shape = states[0].shape if frames_X is None else (len(frames_X), states[0].shape[-1])
        out_BFD = torch.empty(shape, dtype=states[0].dtype, device=states[0].device)
        out_XD = out_BFD.view(-1, out_BFD.shape[-1])
        mean_LX1, scale_LX1 = (weights_L.new_empty(len(states), len(out_XD) if normalise else 0, 1) for _ in range(2))
        for part, found in _blocks(states, frames_X):
            sum_XD = weights_L.new_zeros(found[0].shape)
            for layer, x_XD in enumerate(found):
                if normalise:
                    x_XD, mean_LX1[layer, part], scale_LX1[layer, part] = _centred(wide(x_XD))
                    sum_XD.addcmul_(x_XD, scale_LX1[layer, part] * weights_L[layer])
                else:
                    sum_XD.addcmul_(wide(x_XD), weights_L[layer])
            out_XD[part] = sum_XD
        ctx.normalise = normalise
        ctx.save_for_backward(weights_L, frames_X, mean_LX1, scale_LX1, *states)
        return out_BFD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BFD: Tensor) -> tuple[Tensor | None, ...]:
        weights_L, frames_X, mean_LX1, scale_LX1, *states = ctx.saved_tensors
        grad_XD = grad_BFD.reshape(-1, grad_BFD.shape[-1])
        grad_L = torch.zeros_like(weights_L)
        for part, found in _blocks(states, frames_X):
            block_XD = wide(grad_XD[part])
            if ctx.normalise:
                centred = (wide(x_XD) - mean_X1 for x_XD, mean_X1 in zip(found, mean_LX1[:, part], strict=True))
                dots_LX1 = torch.stack([x_XD.mul_(block_XD).sum(1, keepdim=True) for x_XD in centred])
                grad_L += (dots_LX1 * scale_LX1[:, part]).sum((1, 2))
            else:
                grad_L += torch.stack([block_XD.flatten().dot(wide(x_XD).flatten()) for x_XD in found])
        return grad_L, None, None, *[None] * len(states)


def _centred(x_XD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows less their mean, mean [X, 1], 1 / standard deviation [X, 1]) as in torch's layer_norm, by plain sums: several times as fast."""
    mean_X1 = x_XD.mean(1, keepdim=True)
    x_XD = x_XD - mean_X1
    variance_X1 = torch.linalg.vector_norm(x_XD, dim=1, keepdim=True).square_().div_(x_XD.shape[1])
    return x_XD, mean_X1, variance_X1.add_(EPS).rsqrt_()
