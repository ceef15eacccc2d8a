"""CKA against the textbook form with an explicit centring matrix, its invariances, padding and degenerate utterances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from speechkd.core.errors import InputError
from speechkd.kernels import weighted_cka
from tests.kernels.products import Products

MODES = ("pre_w", "pre_sqrt_w", "weighted_hsic")
every_mode = pytest.mark.parametrize("mode", MODES)
every_form = pytest.mark.parametrize("form", ["gram", "feature", "auto"])
LENGTHS = (7, 4, 2)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 7, 5, generator=g, dtype=torch.float64), torch.randn(3, 7, 3, generator=g, dtype=torch.float64)
    weights = torch.rand(3, 7, generator=g, dtype=torch.float64)
    mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
    return x.to(dtype), y.to(dtype), weights.to(dtype), mask


def textbook(x: Tensor, y: Tensor, w: Tensor, mode: str) -> Tensor:
    """One unpadded utterance, with H = I - 11'/n, or the weighted H of kernel HSIC."""
    n = len(w)
    if mode == "weighted_hsic":
        p = w / w.sum()
        half = p.sqrt().diag() @ (torch.eye(n, dtype=w.dtype) - torch.ones(n, 1, dtype=w.dtype) @ p[None])
    else:
        half = (torch.eye(n, dtype=w.dtype) - 1.0 / n) @ (w if mode == "pre_w" else w.sqrt()).diag()
    k, m = half @ x @ x.T @ half.T, half @ y @ y.T @ half.T
    return (k * m).sum() / (k.norm() * m.norm())


@every_mode
@every_form
def test_textbook(mode: str, form: str) -> None:
    x, y, w, mask = batch()
    out = weighted_cka(x, y, w, mask, mode, form=form)
    expected = torch.stack([textbook(x[b, :n], y[b, :n], w[b, :n], mode) for b, n in enumerate(LENGTHS)])
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(weighted_cka(x.float(), y.float(), w.float(), mask, mode, form=form), expected.float(), rtol=1e-5, atol=0)


@every_mode
@every_form
def test_gradcheck(mode: str, form: str) -> None:
    x, y, w, mask = batch()

    def run(a: Tensor, b: Tensor) -> Tensor:
        return weighted_cka(a, b, w, mask, mode, form=form)

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), y.requires_grad_()), fast_mode=True)


@every_mode
def test_invariances(mode: str) -> None:
    x, y, w, mask = batch()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    value = weighted_cka(x, y, w, mask, mode)
    torch.testing.assert_close(weighted_cka(x, x @ rotation * 1e-6, w, mask, mode), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(weighted_cka(1e6 * x, y, 1e-9 * w, mask, mode), value)
    assert not torch.allclose(weighted_cka(x, y, torch.ones_like(w), mask, mode), value)
    assert ((value > 0) & (value < 1 + 1e-12)).all()


def test_modes_agree_at_equal_weights_and_differ_otherwise() -> None:
    x, y, w, mask = batch()
    equal = [weighted_cka(x, y, torch.ones_like(w), mask, mode) for mode in MODES]
    torch.testing.assert_close(equal[0], equal[1])
    torch.testing.assert_close(equal[0], equal[2])
    given = [weighted_cka(x, y, w, mask, mode)[0].item() for mode in MODES]
    assert len({round(v, 6) for v in given}) == 3


@every_mode
@every_form
def test_padding_holds_anything(mode: str, form: str) -> None:
    x, y, w, mask = batch()
    clean_x, dirty_x = x.clone().requires_grad_(), x.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    clean = weighted_cka(clean_x, y, w, mask, mode, form=form)
    dirty = weighted_cka(dirty_x, y.masked_fill(~mask[..., None], torch.inf), w.masked_fill(~mask, torch.nan), mask, mode, form=form)
    assert torch.equal(dirty, clean)
    (a,), (b,) = torch.autograd.grad(clean.sum(), clean_x), torch.autograd.grad(dirty.sum(), dirty_x)
    assert torch.equal(a, b) and (b[~mask] == 0).all()


def value_and_gradients(given: tuple[Tensor, ...], mode: str, form: str, impl: str) -> list[Tensor]:
    """CKA, and the gradients of x and of y."""
    x, y = (t.detach().clone().requires_grad_() for t in given[:2])
    out = weighted_cka(x, y, *given[2:], mode, impl, form)
    return [out.detach(), *torch.autograd.grad(out, [x, y], torch.linspace(0.5, 1.5, len(out), dtype=out.dtype))]


@every_mode
@every_form
@pytest.mark.parametrize("holes", [False, True])
def test_the_closed_form_is_the_reference_with_its_gradients(mode: str, form: str, holes: bool) -> None:
    """In float64 to rounding, in float32 and bfloat16 no further from float64; a mask with holes, utterances of no and of one position."""
    x, y, w, mask = batch()
    x, y, w = (torch.cat([t, t[:2]]) + 3.0 for t in (x, y, w))
    mask = torch.cat([mask, torch.arange(7)[None] < torch.tensor([[0], [1]])])
    mask[0, 2] = not holes
    truth = value_and_gradients((x, y, w, mask), mode, form, "reference")
    for ours, wanted in zip(value_and_gradients((x, y, w, mask), mode, form, "closed"), truth, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-13)
    for dtype, unit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        low = (x.to(dtype), y.to(dtype), w.to(dtype), mask)
        truth = value_and_gradients((*(t.double() for t in low[:3]), mask), mode, form, "reference")
        both = (value_and_gradients(low, mode, form, impl) for impl in ("closed", "reference"))
        for ours, theirs, wanted in zip(*both, truth, strict=True):
            assert (ours.double() - wanted).norm() <= 1.5 * (theirs.double() - wanted).norm() + unit * wanted.norm(), dtype


def test_weights_that_want_a_gradient_get_it_from_the_reference() -> None:
    x, y, w, mask = batch()
    assert torch.autograd.grad(weighted_cka(x, y, w.requires_grad_(), mask).sum(), w)[0].any()
    with pytest.raises(InputError, match="the weights want a gradient"):
        weighted_cka(x, y, w, mask, impl="closed")


def test_padding_costs_nothing_on_a_cpu() -> None:
    """Eight times the positions, all of them padding: not an operation more."""
    x, y, w, mask = batch(torch.float32)
    counts = []
    for times in (1, 8):
        with Products() as counter:
            value_and_gradients((*(pad(t, (0, 0) * (t.dim() - 2) + (0, 7 * times - 7)) for t in (x, y, w, mask)),), "pre_w", "gram", "auto")
        counts.append(counter.flops)
    assert counts[0] == counts[1] > 0


@every_mode
@every_form
@pytest.mark.parametrize("valid", [0, 1])
def test_too_short_to_compare_is_zero_with_a_graph(mode: str, form: str, valid: int) -> None:
    x, y, w, _ = batch()
    x.requires_grad_()
    out = weighted_cka(x, y, w, (torch.arange(7) < valid).expand(3, 7), mode, form=form)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (out == 0).all() and (grad == 0).all()


@every_mode
def test_long_low_precision_input(mode: str) -> None:
    """Attention over 1,500 positions in bfloat16, tiny features: close to the float64 value of the same numbers."""
    g = torch.Generator().manual_seed(2)
    x, y = 1e-4 * torch.randn(1, 1500, 16, generator=g).bfloat16(), torch.randn(1, 1500, 8, generator=g).bfloat16()
    w, mask = torch.randn(1, 1500, generator=g).softmax(1).bfloat16(), torch.ones(1, 1500, dtype=torch.bool)
    out, truth = weighted_cka(x, y, w, mask, mode), weighted_cka(x.double(), y.double(), w.double(), mask, mode)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), truth, rtol=1e-4, atol=0)


def test_wrong_input() -> None:
    x, y, w, mask = batch()
    with pytest.raises(InputError, match="allowed: pre_sqrt_w, pre_w, weighted_hsic"):
        weighted_cka(x, y, w, mask, "sqrt")
    with pytest.raises(InputError, match="agree in B and T"):
        weighted_cka(x[:2], y, w, mask)
