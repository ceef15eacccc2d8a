"""The language gate: straight-through choice, scheduled teacher forcing, what it selects, and that it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from speechkd.core.seeds import torch_seed
from speechkd.losses.language_id import language_id
from speechkd.models.projectors import Hint
from speechkd.models.projectors.language_gates import (
    AttentionGate,
    ConvGate,
    forced_choice,
    forcing_probability,
    hard_choice,
    soft_choice,
)
from tests.models.test_projectors import make, states

NEVER = Hint(language_B=None, progress=1.0)


def logits(B: int = 64, K: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(B, K, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_hard_choice_is_one_hot_forwards_and_soft_backwards(dtype: torch.dtype) -> None:
    g = logits(dtype=dtype)
    hard, soft = hard_choice(g), soft_choice(g)
    assert torch.equal(hard, torch.nn.functional.one_hot(g.argmax(1), 6).to(hard.dtype))  # exactly, in every dtype
    value = torch.randn(hard.shape, generator=torch.Generator().manual_seed(1), dtype=hard.dtype)
    grads = [torch.autograd.grad((choice * value).sum(), g)[0] for choice in (hard, soft)]
    assert torch.equal(grads[0], grads[1]) and grads[0].any()


def test_soft_choice_against_numpy() -> None:
    g = logits(dtype=torch.float64)
    e = np.exp(g.detach().numpy())
    np.testing.assert_allclose(soft_choice(g).detach().numpy(), e / e.sum(1, keepdims=True), rtol=1e-12)


def test_forcing_follows_the_cosine() -> None:
    """p_tf(s) = (1 + cos(pi min(1, s / (S / 2)))) / 2, for every step of 200."""
    steps = 200
    for s in range(steps + 1):
        expected = 0.5 * (1 + math.cos(math.pi * min(1.0, s / (0.5 * steps))))
        assert forcing_probability(s / steps) == pytest.approx(expected, abs=1e-12)
    assert forcing_probability(0.0) == 1.0 and forcing_probability(0.25) == pytest.approx(0.5) and forcing_probability(0.5) == 0.0
    assert [forcing_probability(p, 0.0) for p in (0.0, 0.5)] == [0.0, 0.0]
    assert forcing_probability(0.5, 1.0) == pytest.approx(0.5)


def test_forcing_is_drawn_for_each_clip_and_never_where_the_language_is_unknown() -> None:
    choice, language = torch.zeros(4000, 3), torch.arange(4000) % 3
    language[::5] = -1
    with torch_seed(0, "forcing"):
        out = forced_choice(choice, language, 0.3)
    assert not out[::5].any()
    forced = out.sum(1) > 0
    assert abs(forced.float().mean() / 0.8 - 0.3) < 0.03
    assert torch.equal(out[forced].argmax(1), language[forced])
    with torch_seed(0, "forcing"):
        assert torch.equal(forced_choice(choice, language, 0.3), out)
    assert torch.equal(forced_choice(choice + 1, language, 0.0), choice + 1)
    assert (forced_choice(choice, language, 1.0).sum(1) == (language >= 0)).all()


@pytest.mark.parametrize("choice", ["soft", "hard"])
def test_a_forced_clip_is_read_with_its_own_languages_queries(choice: str) -> None:
    bank = make("query_bank", choice=choice)
    frames, language = states(4, 7), torch.tensor([0, 1, 1, 0])
    forced = bank(frames, Hint(language_B=language, progress=0.0)).states_BQE
    queries = bank.bank_KQW[language]
    torch.testing.assert_close(forced, bank.projection(bank.decoder(queries, frames)))
    free = bank(frames, NEVER)
    late = bank(frames, Hint(language_B=language, progress=0.5))
    assert torch.equal(late.states_BQE, free.states_BQE) and torch.equal(late.gate_BK, free.gate_BK)


def test_the_gate_chooses_between_sets() -> None:
    frames = states(3, 7)
    for choice in ("soft", "hard"):
        bank = make("query_bank", choice=choice)
        out = bank(frames, NEVER)
        pi = out.gate_BK.softmax(1)
        if choice == "hard":
            queries = bank.bank_KQW[out.gate_BK.argmax(1)]
        else:
            queries = pi[:, 0, None, None] * bank.bank_KQW[0] + pi[:, 1, None, None] * bank.bank_KQW[1]
        torch.testing.assert_close(out.states_BQE, bank.projection(bank.decoder(queries, frames)))


def test_a_forced_clip_still_teaches_the_gate_by_its_own_loss_and_only_by_it() -> None:
    bank, language = make("query_bank"), torch.tensor([0, 1])
    out = bank(states(2, 7), Hint(language_B=language, progress=0.0))
    out.states_BQE.sum().backward(retain_graph=True)
    assert not any(p.grad is not None and p.grad.any() for p in bank.gate.parameters())
    assert bank.bank_KQW.grad is not None and bank.bank_KQW.grad[0].any()
    language_id(out.gate_BK, language, language >= 0).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in bank.gate.parameters())


@pytest.mark.parametrize("kind", [AttentionGate, ConvGate])
def test_gates_learn_what_only_a_few_frames_say(kind: type[AttentionGate] | type[ConvGate]) -> None:
    """Three classes, each a direction that stands in 4 of 40 noisy frames."""
    torch.manual_seed(0)
    gate, directions = kind(8, 16, 3), 4 * torch.randn(3, 8)
    optimiser = torch.optim.Adam(gate.parameters(), 1e-2)

    def batch() -> tuple[Tensor, Tensor]:
        language, where = torch.randint(3, (64,)), torch.randint(36, (64,))
        frames = torch.randn(64, 40, 8)
        for b in range(64):
            frames[b, where[b] : where[b] + 4] += directions[language[b]]
        return frames, language

    for _ in range(120):
        frames, language = batch()
        optimiser.zero_grad()
        language_id(gate(frames), language, language >= 0).total.backward()
        optimiser.step()
    frames, language = batch()
    assert (gate(frames).argmax(1) == language).float().mean() > 0.95
