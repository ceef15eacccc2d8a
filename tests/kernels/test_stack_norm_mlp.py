"""Frame stacking against a loop over frames, the lengths that it promises, and packed rows against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels import stack_norm_mlp
from speechkd.kernels.layer_sum.states import LayerStates
from tests.kernels.products import Products
from tests.kernels.ragged import valid_rows

C, H, D = 3, 5, 4


FORMS = {
    "plain": "",
    "layer": "norm shift",
    "rms, gated, post rms": "norm gated post",
    "frames, post layer": "frames shift post postshift",
    "frames rms, gated": "frames gated",
}
every_form = pytest.mark.parametrize("form", list(FORMS))


def parts(stack: int, form: str = "layer") -> dict[str, Tensor]:
    """Weights of one form; C wide norms where it says `frames`, no biases of norms where it does not say so."""
    g, words = torch.Generator().manual_seed(stack), FORMS[form].split()
    width = C if "frames" in words else stack * C
    first = 2 * H if "gated" in words else H
    shapes = {"in_weight_HS": (first, stack * C), "in_bias_H": (first,), "out_weight_DH": (D, H), "out_bias_D": (D,)}
    shapes |= {"norm_weight_S": (width,)} if {"norm", "frames"} & set(words) else {}
    shapes |= {"norm_bias_S": (width,)} if "shift" in words else {}
    shapes |= {"post_weight_D": (D,)} if "post" in words else {}
    shapes |= {"post_bias_D": (D,)} if "postshift" in words else {}
    return {name: torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()}


def gated(form: str) -> bool:
    return "gated" in FORMS[form]


def normed(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    """By hand."""
    weight, bias = (
        p.get(key) for key in (f"{name}_weight_{'D' if name == 'post' else 'S'}", f"{name}_bias_{'D' if name == 'post' else 'S'}")
    )
    if weight is None:
        return x
    x = x if bias is None else x - x.mean()
    return x / (x.square().mean() + 1e-5).sqrt() * weight + (0.0 if bias is None else bias)


@every_form
@pytest.mark.parametrize("frames,stack", [(1, 4), (8, 4), (9, 4), (11, 4), (5, 1), (0, 3)])
def test_against_a_loop(frames: int, stack: int, form: str) -> None:
    x = torch.randn(2, frames, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, by_frame = parts(stack, form), "frames" in form
    for impl in ("packed", "reference"):
        out = stack_norm_mlp(x, stack, **p, gated=gated(form), impl=impl)  # type: ignore[arg-type]
        assert out.shape == (2, -(-frames // stack), D)
        for b in range(2):
            for q in range(out.shape[1]):
                piece = torch.zeros(stack * C, dtype=torch.float64)
                for i in range(stack):
                    if q * stack + i < frames:  # the last partial stack is filled up with zeros, not dropped
                        frame = x[b, q * stack + i]
                        piece[i * C : (i + 1) * C] = normed(frame, p, "norm") if by_frame else frame
                inner = p["in_weight_HS"] @ (piece if by_frame else normed(piece, p, "norm")) + p["in_bias_H"]
                gate = inner[H:] if gated(form) else inner
                hidden = gate * gate.sigmoid() * (inner[:H] if gated(form) else 1.0)
                torch.testing.assert_close(out[b, q], normed(p["out_weight_DH"] @ hidden + p["out_bias_D"], p, "post"))


LENGTHS = {"ragged": (9, 0, 4, 1), "one": (7,), "none": (0, 0), "whole": (9, 9)}
SOURCES = ("frozen", "trained", "layers", "normalised layers")


def outputs_and_gradients(
    x: Tensor, p: dict[str, Tensor], rows: Tensor | None, impl: str, dtype: torch.dtype, form: str = "layer", source: str = "frozen"
) -> dict[str, Tensor]:
    """Of one pass in `dtype`, by name, wide."""
    p = {name: t.detach().to(dtype).requires_grad_() for name, t in p.items()}
    frames: Tensor | LayerStates = x.detach().to(dtype).requires_grad_(source == "trained")
    leaf = frames
    if "layers" in source:
        leaf = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
        scales = torch.linspace(0.5, 1.5, C, dtype=torch.float64)
        states = [(x.detach() * scales.roll(layer) * (layer + 1)).to(dtype) for layer in range(3)]
        frames = LayerStates(states, leaf, source.startswith("normalised"))
    out = stack_norm_mlp(frames, 4, **p, rows_R=rows, impl=impl, gated=gated(form))  # type: ignore[arg-type]
    assert out.dtype == dtype
    weigh = torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype)
    (out * weigh).sum().backward()
    found = {"out": out.detach(), **{name: t.grad for name, t in p.items() if t.grad is not None}}
    assert isinstance(leaf, Tensor)
    return {name: t.double() for name, t in found.items()} | ({"source": leaf.grad.double()} if leaf.grad is not None else {})


@every_form
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("lengths", list(LENGTHS))
def test_packed_rows_and_every_gradient_are_the_references(lengths: str, source: str, form: str) -> None:
    """In float64 to rounding; in float32 and bfloat16 no further from float64 than the reference in the same precision."""
    g = torch.Generator().manual_seed(1)
    valid_B = torch.tensor(LENGTHS[lengths])
    x = torch.randn(len(valid_B), 9, C, generator=g, dtype=torch.float64).mul_(torch.arange(9)[None, :, None] < valid_B[:, None, None])
    p, rows = parts(4, form), valid_rows(valid_B, 4, 9)
    assert len(rows) == sum(-(-n // 4) for n in valid_B.tolist())
    truth = outputs_and_gradients(x, p, rows, "reference", torch.float64, form, source)
    assert ("source" in truth) == (source != "frozen") and len(truth) == 1 + len(p) + ("source" in truth)
    for name, value in outputs_and_gradients(x, p, rows, "packed", torch.float64, form, source).items():
        torch.testing.assert_close(value, truth[name], rtol=1e-10, atol=1e-11)
    # how a sum of layers is rounded is test_layer_sum's: a norm of three values makes anything of it
    for dtype, unit in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)) if source in ("frozen", "trained") else ():
        packed, eager = (outputs_and_gradients(x, p, rows, impl, dtype, form, source) for impl in ("packed", "reference"))
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


def test_layers_are_summed_where_rows_are_read_and_nowhere_else() -> None:
    """Nor is a sum of all frames made: the memory of a pass is that of the rows."""
    states = [torch.randn(3, 8, C, dtype=torch.float64) for _ in range(2)]
    rows = valid_rows(torch.tensor([8, 1, 4]), 4, 8)
    for state in states:
        state[1, 4:] = state[2, 4:] = torch.nan
    layers = LayerStates(states, torch.tensor([0.4, 0.6], dtype=torch.float64, requires_grad=True))
    with Products() as counter:
        out = stack_norm_mlp(layers, 4, **parts(4), rows_R=rows)
        out.sum().backward()
    assert out.isfinite().all() and layers.weights_L.grad is not None and layers.weights_L.grad.isfinite().all()
    assert counter.flops == 2 * len(rows) * (3 * 4 * C * H + 3 * H * D), "both layers: forward, and two products backward"


def test_wrong_input() -> None:
    p = parts(2)
    with pytest.raises(InputError, match="a gated first layer of 5 outputs does not fit a second layer of width 5"):
        stack_norm_mlp(torch.zeros(1, 4, C, dtype=torch.float64), 2, **p, gated=True)
    with pytest.raises(InputError, match="a norm of width 5 fits neither 3-wide frames nor 2 of them"):
        stack_norm_mlp(torch.zeros(1, 4, C, dtype=torch.float64), 2, **{**p, "norm_weight_S": torch.ones(5)})
    with pytest.raises(InputError, match="stack 3 of 3-wide frames does not fit a first layer of width 6"):
        stack_norm_mlp(torch.zeros(1, 4, C, dtype=torch.float64), 3, **p)
    with pytest.raises(InputError, match="allowed: auto, packed, reference, triton"):
        stack_norm_mlp(torch.zeros(1, 4, C, dtype=torch.float64), 2, impl="fused", **p)
