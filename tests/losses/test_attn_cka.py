"""The attention-weighted CKA as a loss: teacher and weights get no gradient, weights matter, scale does not."""

from __future__ import annotations

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.losses.attn_cka import attention_weighted_cka, attn_cka_loss


@pytest.mark.parametrize("mode", ["pre_w", "pre_sqrt_w", "weighted_hsic"])
def test_gradients_go_to_the_student_alone(mode: str) -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 3, generator=g, requires_grad=True), torch.randn(2, 6, 5, generator=g, requires_grad=True)
    weights = torch.rand(2, 6, generator=g, requires_grad=True)
    out = attention_weighted_cka(student, teacher, weights, torch.ones(2, 6, dtype=torch.bool), mode)
    out.sum().backward()
    assert out.shape == (2,) and student.grad is not None and teacher.grad is None and weights.grad is None


@pytest.mark.parametrize("mode", ["pre_w", "pre_sqrt_w", "weighted_hsic"])
def test_training_on_it_raises_it_where_the_weight_is(mode: str) -> None:
    g = torch.Generator().manual_seed(1)
    teacher, student = torch.randn(1, 12, 4, generator=g), torch.randn(1, 12, 4, generator=g).requires_grad_()
    weights = torch.cat([torch.full((1, 6), 1.0), torch.zeros(1, 6)], 1)
    mask = torch.ones(1, 12, dtype=torch.bool)
    before = student.detach().clone()
    for _ in range(200):
        (grad,) = torch.autograd.grad(1 - attention_weighted_cka(student, teacher, weights, mask, mode).sum(), student)
        student = (student - 2.0 * grad).detach().requires_grad_()
    after_value, before_value = (attention_weighted_cka(x, teacher, weights, mask, mode) for x in (student, before))
    assert after_value > 0.95 > before_value
    assert torch.equal(student[:, 6:], before[:, 6:])  # unattended positions are left alone


def test_unknown_mode() -> None:
    x = torch.zeros(1, 2, 3)
    with pytest.raises(InputError, match="did you mean `pre_w`"):
        attention_weighted_cka(x, x, x[..., 0], torch.ones(1, 2, dtype=torch.bool), "prew")


def test_loss_leaves_out_what_has_no_geometry() -> None:
    g = torch.Generator().manual_seed(5)
    student, teacher, mask = torch.randn(3, 4, 2, generator=g), torch.randn(3, 4, 6, generator=g), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 1:], mask[2] = False, False
    out = attn_cka_loss(student, teacher, torch.ones(3, 4), mask)
    assert out.count == 1
    torch.testing.assert_close(out.total, 1 - attention_weighted_cka(student, teacher, torch.ones(3, 4), mask)[0])
