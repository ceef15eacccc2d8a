"""The absorbed form of cross attention against the projected one: values, every gradient, masks, and when which is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkd.models.lora import LoraConfig, Switch, add_lora
from speechkd.models.projectors import cross_decoder
from speechkd.models.projectors.absorbed import absorbing_is_cheaper
from speechkd.models.projectors.cross_decoder import Attention

W, D, HEADS = 12, 10, 3


def attention(dtype: torch.dtype = torch.float64) -> Attention:
    torch.manual_seed(0)
    made = Attention(W, D, HEADS).double()
    for param in made.parameters():
        nn.init.normal_(param, std=0.5)
    return made.to(dtype)


def run(
    monkeypatch: pytest.MonkeyPatch, absorbed: bool, dtype: torch.dtype, masked: bool, frozen: bool, clips: int = 2
) -> dict[str, Tensor]:
    """Output and gradients by name, wide, of the form asked for."""
    monkeypatch.setattr(cross_decoder, "absorbing_is_cheaper", lambda *_: absorbed)
    made, g = attention(dtype), torch.Generator().manual_seed(1)
    x = torch.randn(clips, 4, W, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    memory = torch.randn(clips, 9, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_(not frozen)
    real = torch.arange(9) < torch.tensor([9, 3][:clips]).view(-1, 1)
    mask = torch.zeros(clips, 9, dtype=dtype).masked_fill(~real, -torch.inf)[:, None, None] if masked else None
    out = made(x, memory, False, mask)
    (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(dtype)).sum().backward()
    found = {"out": out.detach(), "x": x.grad, "memory": memory.grad, **{name: p.grad for name, p in made.named_parameters()}}
    return {name: value.double() for name, value in found.items() if value is not None}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("clips", [0, 1, 2])
def test_the_forms_agree(monkeypatch: pytest.MonkeyPatch, masked: bool, frozen: bool, clips: int) -> None:
    one, other = (run(monkeypatch, absorbed, torch.float64, masked, frozen, clips) for absorbed in (True, False))
    assert one.keys() == other.keys() and ("memory" in one) == (not frozen)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_no_further_from_the_truth_in_low_precision(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, unit: float) -> None:
    truth = run(monkeypatch, False, torch.float64, True, False)
    absorbed, projected = (run(monkeypatch, form, dtype, True, False) for form in (True, False))
    for name, wanted in truth.items():
        off, theirs = ((found[name] - wanted).norm() for found in (absorbed, projected))
        assert off <= 1.5 * theirs + unit * wanted.norm(), name


def test_few_queries_absorb_and_many_project() -> None:
    """Break-even lies near as many queries as a head is wide."""
    whisper: dict[str, Any] = {"memory": 1500, "width": 1280, "width_memory": 1280, "heads": 20}
    assert [n for n in range(1, 200) if absorbing_is_cheaper(n, **whisper)] == list(range(1, 65))
    assert absorbing_is_cheaper(1, 17, 768, 1280, 12) and not absorbing_is_cheaper(448, 1500, 1280, 1280, 20)
    assert not absorbing_is_cheaper(4, 4, 64, 64, 1), "nothing to win in self-attention"


def products(made: Attention, queries: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the key projection saw the memory itself."""
    seen = []
    monkeypatch.setattr(made.k_proj, "forward", _watched(made.k_proj.forward, seen))
    made(torch.randn(1, queries, W), torch.randn(1, 50, D), False)
    return sum(x.shape[1] == 50 for x in seen)


def _watched(forward: Any, seen: list[Tensor]) -> Any:
    return lambda x, *rest: (seen.append(x), forward(x, *rest))[1]


def test_the_form_follows_the_shapes_and_lora_and_autocast_project(monkeypatch: pytest.MonkeyPatch) -> None:
    made = attention(torch.float32)
    assert products(made, 2, monkeypatch) == 0 and products(made, 40, monkeypatch) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert products(made, 2, monkeypatch) == 1
    x, memory = torch.randn(2, 2, W), torch.randn(2, 50, D)
    before = made(x, memory, False)
    add_lora(made, ["v_proj"], LoraConfig(r=2, targets=["v_proj"]), Switch())
    torch.testing.assert_close(made(x, memory, False), before)
    made.v_proj.lora_B.data.normal_()
    assert not torch.allclose(made(x, memory, False), before) and products(made, 2, monkeypatch) == 1
