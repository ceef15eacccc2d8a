"""Frame stacking against a loop over frames, the lengths that it promises, and packed rows against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels import stack_norm_mlp
from tests.kernels.products import Products
from tests.kernels.ragged import valid_rows

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


LENGTHS = {"ragged": (9, 0, 4, 1), "one": (7,), "none": (0, 0), "whole": (9, 9)}


def outputs_and_gradients(x: Tensor, p: dict[str, Tensor], rows: Tensor | None, impl: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of one pass in `dtype`, by name, wide."""
    x = x.detach().to(dtype).requires_grad_(x.requires_grad)
    p = {name: t.detach().to(dtype).requires_grad_() for name, t in p.items()}
    out = stack_norm_mlp(x, 4, **p, rows_R=rows, impl=impl)
    weigh = torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype)
    (out * weigh).sum().backward()
    found = {"out": out.detach(), **{name: t.grad for name, t in p.items() if t.grad is not None}}
    return {name: t.double() for name, t in found.items()} | ({"x": x.grad.double()} if x.grad is not None else {})


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("lengths", list(LENGTHS))
def test_packed_rows_and_every_gradient_are_the_references(lengths: str, frozen: bool, norm: bool) -> None:
    """In float64 to rounding; in float32 and bfloat16 no further from float64 than the reference in the same precision."""
    g = torch.Generator().manual_seed(1)
    valid_B = torch.tensor(LENGTHS[lengths])
    x = torch.randn(len(valid_B), 9, C, generator=g, dtype=torch.float64).mul_(torch.arange(9)[None, :, None] < valid_B[:, None, None])
    x, p = x.requires_grad_(not frozen), parts(4)
    if not norm:
        del p["norm_weight_S"], p["norm_bias_S"]
    rows = valid_rows(valid_B, 4, 9)
    assert len(rows) == sum(-(-n // 4) for n in valid_B.tolist())
    truth = outputs_and_gradients(x, p, rows, "reference", torch.float64)
    assert ("x" in truth) == (not frozen) and len(truth) == 1 + len(p) + (not frozen)
    for name, value in outputs_and_gradients(x, p, rows, "packed", torch.float64).items():
        torch.testing.assert_close(value, truth[name], rtol=1e-10, atol=1e-11)
    for dtype, unit in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        packed, eager = (outputs_and_gradients(x, p, rows, impl, dtype) for impl in ("packed", "reference"))
        for name, wanted in truth.items():
            off, theirs, scale = ((t - wanted).norm() for t in (packed[name], eager[name], torch.zeros_like(wanted)))
            assert off <= 1.5 * theirs + unit * scale, (name, dtype)
    if lengths == "none":
        assert not any(value.any() for value in truth.values()) and len(rows) == 0


def test_what_is_not_read_is_zero_whatever_stands_there() -> None:
    x, p = torch.randn(2, 9, C, dtype=torch.float64), parts(4)
    rows = valid_rows(torch.tensor([9, 3]), 4, 9)
    out = stack_norm_mlp(x.index_fill(1, torch.tensor([8]), torch.nan)[1:], 4, **p, rows_R=rows[3:] - 3)
    torch.testing.assert_close(out[0, 0], stack_norm_mlp(x, 4, **p)[1, 0])
    assert not out[0, 1:].any()


def test_under_autocast_it_is_the_reference() -> None:
    x, p = torch.randn(2, 9, C), {name: t.detach().float().requires_grad_() for name, t in parts(4).items()}
    grads = []
    for impl in ("packed", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            out = stack_norm_mlp(x, 4, **p, impl=impl)
        assert out.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(out.float().square().sum(), list(p.values())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_frozen_frames_cost_one_matrix_product_less_and_the_activation_is_not_kept() -> None:
    x, p = torch.randn(4, 8, C), {name: t.detach().float().requires_grad_() for name, t in parts(4).items()}
    flops, kept = [], []
    for impl in ("reference", "packed"):
        bytes_: dict[int, int] = {}

        def keep(t: Tensor, seen: dict[int, int] = bytes_) -> Tensor:
            seen[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
            return t

        with Products() as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                out = stack_norm_mlp(x, 4, **p, impl=impl)
            out.sum().backward()
        flops.append(counter.flops)
        kept.append(sum(bytes_.values()))
    rows, S = 8, 4 * C
    assert flops[0] - flops[1] == 2 * rows * S * H
    assert kept[0] - kept[1] >= 4 * rows * (S + H), "neither the normalised rows nor the activation"


def test_gradients_reach_every_part() -> None:
    p = parts(2)
    stack_norm_mlp(torch.randn(1, 5, C, dtype=torch.float64), 2, **p).square().sum().backward()
    assert all(x.grad is not None and x.grad.norm() > 0 for x in p.values())


def test_wrong_input() -> None:
    p = parts(2)
    with pytest.raises(InputError, match="stack 3 of 3-wide frames does not fit a first layer of width 6"):
        stack_norm_mlp(torch.zeros(1, 4, C, dtype=torch.float64), 3, **p)
    with pytest.raises(InputError, match="allowed: auto, packed, reference, triton"):
        stack_norm_mlp(torch.zeros(1, 4, C, dtype=torch.float64), 2, impl="fused", **p)
