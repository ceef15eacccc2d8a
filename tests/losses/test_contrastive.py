"""The contrastive target: what it pushes, what it leaves, and that hidden states and logits give the same one."""

from __future__ import annotations

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.losses.contrastive import contrastive_kd, contrastive_target, linear_contrastive_kd
from speechkd.losses.divergences import forward_kl
from tests.losses.method_cases import HEAD, D, V, draw

MASK = torch.ones(3, dtype=torch.bool)


def test_alpha_zero_is_plain_distillation() -> None:
    x, pos, neg = (draw(3, V, seed=s) for s in (1, 2, 3))
    plain = forward_kl(x, pos, MASK, 2.0).total
    torch.testing.assert_close(contrastive_kd(x, pos, neg, torch.zeros(3, dtype=torch.long), MASK, 0.0, 1.0).total, plain)


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
    out = linear_contrastive_kd(x, HEAD, pos, neg, HEAD, targets, MASK, softcap=2.5, teacher_softcap=2.5, impl=impl)
    torch.testing.assert_close(out.total, contrastive_kd(*capped, targets, MASK).total)


def test_minus_infinity_is_no_nan() -> None:
    pos, neg = torch.zeros(1, 4), torch.zeros(1, 4)
    pos[0, 0], pos[0, 1], neg[0, 1], neg[0, 2] = -torch.inf, -torch.inf, -torch.inf, -torch.inf
    target = contrastive_target(pos, neg, 1.0)
    assert target.isfinite().all()
    torch.testing.assert_close(target.softmax(1), torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
    x = torch.zeros(1, 4, requires_grad=True)
    out = contrastive_kd(x, pos, neg, torch.tensor([3]), MASK[:1])
    assert out.total.isfinite() and torch.autograd.grad(out.total, x)[0].isfinite().all()


def test_wrong_input_is_refused() -> None:
    x, ids = torch.zeros(3, V), torch.zeros(3, dtype=torch.long)
    with pytest.raises(InputError, match="alpha"):
        contrastive_kd(x, x, x, ids, MASK, alpha=-1.0)
    with pytest.raises(InputError, match="between 0 and 1"):
        contrastive_kd(x, x, x, ids, MASK, kl_weight=1.5)
    with pytest.raises(InputError, match="one shape"):
        contrastive_target(x, x[:, :2])
