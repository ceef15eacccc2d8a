"""Directions, limits, factors and differing vocabularies, against formulas written out on probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.losses import divergences as d

T, V = 4, 9
ALL = torch.ones(T, dtype=torch.bool)


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(T, V, generator=g, dtype=torch.float64), 2 * torch.randn(T, V, generator=g, dtype=torch.float64)


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum()


def test_directions_and_mixtures() -> None:
    student, teacher = pair()
    q, p = (student / 2).softmax(1), (teacher / 2).softmax(1)
    m = 0.3 * p + 0.7 * q
    truth = {
        d.forward_kl(student, teacher, ALL, 2.0).total: kl(p, q),
        d.reverse_kl(student, teacher, ALL, 2.0).total: kl(q, p),
        d.jsd(student, teacher, ALL, 2.0, beta=0.3).total: 0.3 * kl(p, m) + 0.7 * kl(q, m),
        d.skew_kl(student, teacher, ALL, 2.0, alpha=0.2).total: kl(p, 0.2 * p + 0.8 * q),
        d.skew_reverse_kl(student, teacher, ALL, 2.0, alpha=0.2).total: kl(q, 0.2 * q + 0.8 * p),
    }
    for value, expected in truth.items():
        torch.testing.assert_close(value, expected)
    assert len({round(x.item(), 6) for x in truth.values()}) == 5  # the five differ on this input, so a swap would be seen


def test_ends_of_beta_and_alpha() -> None:
    student, teacher = pair(1)
    forward, reverse = d.forward_kl(student, teacher, ALL).total, d.reverse_kl(student, teacher, ALL).total
    assert d.jsd(student, teacher, ALL, beta=0.0).total == forward == d.skew_kl(student, teacher, ALL, alpha=0.0).total
    assert d.jsd(student, teacher, ALL, beta=1.0).total == reverse == d.skew_reverse_kl(student, teacher, ALL, alpha=0.0).total
    torch.testing.assert_close(d.jsd(student, teacher, ALL, beta=1e-6).total / 1e-6, forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(d.jsd(student, teacher, ALL, beta=1 - 1e-6).total / 1e-6, reverse, rtol=1e-4, atol=0)


def test_jsd_is_symmetric_and_bounded() -> None:
    student, teacher = pair(2)
    one_way, back = d.jsd(student, teacher, ALL), d.jsd(teacher, student, ALL)
    torch.testing.assert_close(one_way.total, back.total)
    far = d.jsd(50 * student, -50 * student, ALL)
    assert 0.6 < far.total / far.count <= 0.6931472


def test_t2_scale_and_no_gradient_to_the_teacher() -> None:
    student, teacher = pair(3)
    teacher.requires_grad_()
    out = d.forward_kl(student.requires_grad_(), teacher, ALL, 3.0)
    torch.testing.assert_close(d.forward_kl(student, teacher, ALL, 3.0, t2_scale=True).total, 9 * out.total)
    out.total.backward()
    assert teacher.grad is None and student.grad is not None


def test_detached_mixture_changes_the_gradient_only() -> None:
    student, teacher = pair(4)
    student.requires_grad_()
    free, held = (d.skew_reverse_kl(student, teacher, ALL, alpha=0.3, detach_mixture=x).total for x in (False, True))
    assert free == held
    assert not torch.allclose(*(torch.autograd.grad(x, student)[0] for x in (free, held)))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
def test_vocabularies_that_differ(name: str) -> None:
    student, teacher = pair(5)
    teacher = torch.cat([teacher, 30 + torch.randn(T, 3, dtype=torch.float64)], 1)  # most of the teacher's mass is on ids of its own
    run = getattr(d, name)
    with pytest.raises(InputError, match="vocabulary 9 and teacher vocabulary 12 differ"):
        run(student, teacher, ALL)
    shared = torch.arange(V) != 4
    student.requires_grad_()
    out = run(student, teacher, ALL, shared_W=shared)
    expected = run(student[:, shared], teacher[:, :V][:, shared], ALL)
    torch.testing.assert_close(out.total, expected.total)
    (grad,) = torch.autograd.grad(out.total, student)
    assert (grad[:, 4] == 0).all() and grad.isfinite().all() and (grad[:, 0] != 0).all()


def test_minus_infinity_on_both_sides_is_no_nan() -> None:
    student, teacher = pair(6)
    student[:, 2], teacher[:, 2] = -torch.inf, -torch.inf
    for run in (d.forward_kl, d.reverse_kl, d.jsd, d.skew_kl, d.skew_reverse_kl):
        x = student.clone().requires_grad_()
        out = run(x, teacher, ALL)
        (grad,) = torch.autograd.grad(out.total, x)
        assert out.total.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize(
    "keys", [{"temperature": 0.0}, {"temperature": float("nan")}, {"beta": 1.5}, {"shared_W": torch.ones(3, dtype=torch.bool)}]
)
def test_wrong_parameters_are_refused(keys: dict[str, Any]) -> None:
    student, teacher = pair()
    with pytest.raises(InputError):
        d.jsd(student, teacher, ALL, **keys)


def test_wrong_mask_is_refused() -> None:
    student, teacher = pair()
    with pytest.raises(InputError, match="boolean"):
        d.forward_kl(student, teacher, ALL.float())
    with pytest.raises(InputError, match="rows of mask_T"):
        d.forward_kl(student[:2], teacher, ALL)
