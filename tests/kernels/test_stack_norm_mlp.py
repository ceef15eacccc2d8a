"""Frame stacking against a loop over frames, and the lengths that it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels import stack_norm_mlp

C, H, D = 3, 5, 4


def parts(stack: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(stack)
    shapes = {
        "in_weight_HS": (H, stack * C),
        "in_bias_H": (H,),
        "out_weight_DH": (D, H),
        "out_bias_D": (D,),
        "norm_weight_S": (stack * C,),
        "norm_bias_S": (stack * C,),
    }
    return {name: torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("frames,stack", [(1, 4), (8, 4), (9, 4), (11, 4), (5, 1), (0, 3)])
def test_against_a_loop(frames: int, stack: int, norm: bool) -> None:
    x = torch.randn(2, frames, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = parts(stack)
    if not norm:
        del p["norm_weight_S"], p["norm_bias_S"]
    out = stack_norm_mlp(x, stack, **p)
    assert out.shape == (2, -(-frames // stack), D)
    for b in range(2):
        for q in range(out.shape[1]):
            piece = torch.zeros(stack * C, dtype=torch.float64)
            for i in range(stack):
                if q * stack + i < frames:  # the last partial stack is filled up with zeros, not dropped
                    piece[i * C : (i + 1) * C] = x[b, q * stack + i]
            if norm:
                piece = (piece - piece.mean()) / (piece.var(unbiased=False) + 1e-5).sqrt() * p["norm_weight_S"] + p["norm_bias_S"]
            inner = p["in_weight_HS"] @ piece + p["in_bias_H"]
            torch.testing.assert_close(out[b, q], p["out_weight_DH"] @ (inner * inner.sigmoid()) + p["out_bias_D"])


def test_gradients_reach_every_part() -> None:
    p = parts(2)
    stack_norm_mlp(torch.randn(1, 5, C, dtype=torch.float64), 2, **p).square().sum().backward()
    assert all(x.grad is not None and x.grad.norm() > 0 for x in p.values())


def test_wrong_input() -> None:
    p = parts(2)
    with pytest.raises(InputError, match="stack 3 of 3-wide frames does not fit a first layer of width 6"):
        stack_norm_mlp(torch.zeros(1, 4, C, dtype=torch.float64), 3, **p)
    with pytest.raises(InputError, match="allowed: auto, reference"):
        stack_norm_mlp(torch.zeros(1, 4, C, dtype=torch.float64), 2, impl="fused", **p)
