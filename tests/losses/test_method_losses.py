"""Every loss of every method against fp64 numpy written from the equations alone, and what all of them promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkd.kernels import chunks
from tests.losses.method_cases import B, Case, Given, array, cases, flat, given
from tests.losses.table_cases import table_cases

CASES = cases() | table_cases()
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5 rows, so that utterances cross chunk borders."""
    monkeypatch.setattr(chunks, "rows_per_chunk", lambda vocabulary, device: 5)


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.truth], ids=[n for n, c in CASES.items() if c.truth])
def test_equals_the_equation(case: Case) -> None:
    g, x = given(), case.student()
    assert case.truth is not None
    out, truth = case.loss(x, g), case.truth(array(x), g)
    assert out.count == len(truth) > 0
    assert abs(out.total.item() - sum(truth)) <= 1e-6 * max(1.0, abs(sum(truth)))
    assert out.total.dtype == out.count.dtype == torch.float64


@every_case
def test_gradcheck(case: Case) -> None:
    g = given()
    assert torch.autograd.gradcheck(lambda x: case.loss(x, g).total, (case.student(),), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.equal], ids=[n for n, c in CASES.items() if c.equal])
def test_zero_with_a_finite_gradient_at_equality_and_positive_elsewhere(case: Case) -> None:
    assert case.equal is not None
    g = case.given_equal(given())
    x = case.equal(g).clone().requires_grad_()
    out = case.loss(x, g)
    (grad,) = torch.autograd.grad(out.total, x)
    assert abs(out.total.item()) < 1e-10 and grad.abs().max() < 1e-6
    assert case.loss(case.student(), g).total > 1e-2


def dirty(g: Given, x: Tensor) -> tuple[Given, Tensor]:
    """NaN, infinity and impossible ids wherever a mask is False."""
    values = vars(g)
    for name in ("logits", "other_logits", "hidden", "other_hidden", "weights"):
        values[name] = values[name].clone()
        values[name][~g.mask] = torch.nan
    values["layers"] = tuple(layer.masked_fill(~g.mask[..., None], torch.inf) for layer in g.layers)
    values["targets"], values["text"] = g.targets.masked_fill(~g.mask, -100), g.text.masked_fill(~g.text_mask[..., None], torch.nan)
    if x.dim() == 3:
        return Given(**values), x.detach().masked_fill(~g.mask[..., None], torch.nan)
    values["language"] = g.language.masked_fill(~g.mask[:, 1], -1)
    return Given(**values), x.detach().masked_fill(~g.mask[:, 1:2], torch.nan)


@every_case
def test_padding_holds_anything(case: Case) -> None:
    g, x = given(), case.student()
    clean = case.loss(x, g)
    (clean_grad,) = torch.autograd.grad(clean.total, x)
    g_dirty, x_dirty = dirty(given(), x)
    out = case.loss(x_dirty.requires_grad_(), g_dirty)
    (grad,) = torch.autograd.grad(out.total, x_dirty)
    assert out.count == clean.count
    torch.testing.assert_close(out.total, clean.total, rtol=1e-14, atol=0)
    torch.testing.assert_close(grad, clean_grad, rtol=1e-12, atol=1e-15)
    assert (grad.flatten(0, 1)[~flat(g.mask)] == 0).all() if x.dim() == 3 else (grad[3] == 0).all()


@every_case
@pytest.mark.parametrize("cut", [0, 1, 2, 4])
def test_utterances_do_not_see_their_batch(case: Case, cut: int) -> None:
    g, x = given(), case.student()
    whole = case.loss(x, g)
    parts = [case.loss(x[part], g.at(part)) for part in (slice(0, cut), slice(cut, B))]
    torch.testing.assert_close(parts[0].total + parts[1].total, whole.total)
    assert parts[0].count + parts[1].count == whole.count
    (grad,) = torch.autograd.grad(whole.total, x)
    torch.testing.assert_close(torch.autograd.grad(parts[0].total + parts[1].total, x)[0], grad)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_mask_keeps_the_graph(case: Case, dtype: torch.dtype) -> None:
    g = given().to(dtype)
    g = Given(**{**vars(g), "mask": torch.zeros_like(g.mask), "text_mask": torch.zeros_like(g.text_mask)})
    x = case.student().detach().to(dtype).requires_grad_()
    out = case.loss(x, g)
    (grad,) = torch.autograd.grad(out.total, x)
    assert out.total == 0 and out.count == 0 and out.total.dtype == torch.float32
    assert grad.shape == x.shape and grad.dtype == dtype and (grad == 0).all()


@every_case
def test_half_precision_is_close(case: Case) -> None:
    """The same rounded numbers in bfloat16 and float64: inside, everything is wide."""
    x, g = case.student().detach().bfloat16(), given().to(torch.bfloat16)
    exact = case.loss(x.double(), g.to(torch.float64))
    out = case.loss(x, g)
    assert out.count == exact.count
    torch.testing.assert_close(out.total.double(), exact.total, rtol=2e-2, atol=0)


@every_case
def test_never_waits_for_the_device(case: Case) -> None:
    """Meta tensors have no values: whatever reads one raises here."""
    meta = torch.device("meta")
    x = case.student().detach().float().to(meta).requires_grad_()
    out = case.loss(x, given().to(torch.float32).to(meta))
    (grad,) = torch.autograd.grad(out.total, x)
    assert grad.shape == x.shape and out.count.device.type == "meta"
