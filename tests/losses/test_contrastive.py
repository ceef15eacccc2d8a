"""The contrastive target: what it pushes, what it leaves, and that hidden states and logits give the same one."""

from __future__ import annotations

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.kernels.logits import Head, Plain
from speechkd.losses.contrastive import Config, contrastive_kd, contrastive_target
from speechkd.losses.divergences import forward_kl
from tests.losses.method_cases import HEAD, D, V, draw

MASK = torch.ones(3, dtype=torch.bool)


def test_alpha_zero_is_plain_distillation() -> None:
    x, pos, neg = (draw(3, V, seed=s) for s in (1, 2, 3))
    plain = forward_kl(x, pos, MASK, 2.0).total
    config, targets = Config(alpha=0.0, kl_weight=1.0), torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(contrastive_kd(*map(Plain, (x, pos, neg)), targets, MASK, config).total, plain)


def test_what_hearing_makes_likelier_becomes_likelier_still() -> None:
    pos, neg = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    p, pushed = pos.softmax(1), contrastive_target(pos, neg, 1.0).softmax(1)
    assert pushed[0, 0] > p[0, 0] and pushed[0, 1] < p[0, 1]
    assert torch.equal(contrastive_target(pos, pos, 2.0), pos)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_soft_capped_teachers_are_pushed_after_the_cap(impl: str) -> None:
    """Hidden states and head with caps on both sides give what capped logits give."""
    x, pos, neg, targets = draw(3, D, seed=4), draw(3, D, seed=5), draw(3, D, seed=6), torch.tensor([1, 2, 3])
    capped = [2.5 * torch.tanh(h @ HEAD.T / 2.5) for h in (x, pos, neg)]
    out = contrastive_kd(*(Head(h, HEAD, 2.5) for h in (x, pos, neg)), targets, MASK, Config(impl=impl))
    torch.testing.assert_close(out.total, contrastive_kd(*map(Plain, capped), targets, MASK, Config()).total)


def test_minus_infinity_is_no_nan() -> None:
    pos, neg = torch.zeros(1, 4), torch.zeros(1, 4)
    pos[0, 0], pos[0, 1], neg[0, 1], neg[0, 2] = -torch.inf, -torch.inf, -torch.inf, -torch.inf
    target = contrastive_target(pos, neg, 1.0)
    assert target.isfinite().all()
    torch.testing.assert_close(target.softmax(1), torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
    x = torch.zeros(1, 4, requires_grad=True)
    out = contrastive_kd(*map(Plain, (x, pos, neg)), torch.tensor([3]), MASK[:1], Config())
    assert out.total.isfinite() and torch.autograd.grad(out.total, x)[0].isfinite().all()


def test_wrong_input_is_refused() -> None:
    x = torch.zeros(3, V)
    for wrong in ({"alpha": -1.0}, {"kl_weight": 1.5}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Config.model_validate(wrong)
    with pytest.raises(InputError, match="one shape"):
        contrastive_target(x, x[:, :2], 1.0)
