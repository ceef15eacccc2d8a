"""What every loss on rows promises, for every divergence and every fused head loss, in each implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels import chunks, linear_cross_entropy, linear_kl, linear_topk_kl
from speechkd.kernels.logits import Plain
from speechkd.losses import divergences
from speechkd.losses.response_ce import response_ce
from speechkd.losses.sampled_kd import sampled_ce
from speechkd.losses.topk_kd import topk_kl

V, D, E, K = 37, 5, 7, 6  # V is no multiple of anything
TEMPERATURE = 1.7
SOFTCAP = 2.5


def head(width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(V, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64).to(dtype)


def bucket_of(logits_TV: Tensor, k: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """ids, log-probs and tail of the k likeliest ids at the capture temperature."""
    logp = torch.log_softmax(logits_TV.double() / TEMPERATURE, 1)
    top = logp.topk(k, dim=1)
    tail = logp.scatter(1, top.indices, -torch.inf).logsumexp(1)
    return top.indices, top.values.to(logits_TV.dtype), tail.to(logits_TV.dtype)


@dataclass
class Signals:
    """Teacher signals of T rows; the teacher is a head of the student's own kind, so that a student can equal it."""

    hidden_TD: Tensor
    logits_TV: Tensor
    targets_T: Tensor
    ids_TK: Tensor
    logp_TK: Tensor
    tail_T: Tensor
    weights_TN: Tensor
    """of the same ids, as if drawn; the last slot is empty"""

    def at(self, rows: slice) -> Signals:
        return Signals(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: str) -> Signals:
        return Signals(*(getattr(self, f.name).to(device) for f in fields(self)))


def signals(T: int, dtype: torch.dtype = torch.float64, softcap: float | None = None) -> Signals:
    g = torch.Generator().manual_seed(7 + T)
    hidden = torch.randn(T, D, generator=g, dtype=torch.float64).to(dtype)
    logits = hidden @ head(D, dtype).T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    top = bucket_of(logits)
    weights = torch.cat([torch.rand(T, K - 1, generator=g, dtype=torch.float64), torch.zeros(T, 1, dtype=torch.float64)], 1)
    return Signals(hidden, logits, torch.randint(V, (T,), generator=g), *top, weights.to(dtype))


Run = Callable[[Tensor, Signals, Tensor], LossOut]


@dataclass
class Case:
    """`run(student, signals, mask)`; the student is logits [T, V] or hidden states [T, D]."""

    run: Run
    logits: bool
    divergence: bool = True
    """0 where student and teacher are equal; a cross-entropy is not"""
    softcap: float | None = None
    proper: bool = True
    """equality is its minimum; not so for a top-k target whose tail is ignored"""

    def student(self, T: int, dtype: torch.dtype = torch.float64) -> Tensor:
        g = torch.Generator().manual_seed(100 + T)
        return torch.randn(T, V if self.logits else D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    def teacher(self, s: Signals) -> Tensor:
        return (s.logits_TV if self.logits else s.hidden_TD).clone().requires_grad_()


def weight_for(x: Tensor) -> Tensor:
    return head(D, x.dtype).to(x.device)


def cases() -> dict[str, Case]:
    out: dict[str, Case] = {
        "forward_kl": Case(lambda x, s, m: divergences.forward_kl(x, s.logits_TV, m, TEMPERATURE), True),
        "reverse_kl": Case(lambda x, s, m: divergences.reverse_kl(x, s.logits_TV, m, TEMPERATURE, t2_scale=True), True),
        "jsd-0.5": Case(lambda x, s, m: divergences.jsd(x, s.logits_TV, m, TEMPERATURE), True),
        "jsd-0.1": Case(lambda x, s, m: divergences.jsd(x, s.logits_TV, m, TEMPERATURE, beta=0.1), True),
        "skew_kl": Case(lambda x, s, m: divergences.skew_kl(x, s.logits_TV, m, TEMPERATURE), True),
        "skew_reverse_kl": Case(lambda x, s, m: divergences.skew_reverse_kl(x, s.logits_TV, m, TEMPERATURE), True),
        "response_ce": Case(lambda x, s, m: response_ce(Plain(x), s.targets_T, m), True, divergence=False),
        "sampled_ce": Case(lambda x, s, m: sampled_ce(Plain(x), s.ids_TK, s.weights_TN, m, TEMPERATURE), True, divergence=False),
    }
    for tail in ("bucket", "renormalise", "ignore"):
        given: Run = lambda x, s, m, tail=tail: topk_kl(x, s.ids_TK, s.logp_TK, m, s.tail_T, TEMPERATURE, tail)  # type: ignore[misc]
        out[f"topk_kl-{tail}"] = Case(given, True, proper=tail != "ignore")
    out["topk_kl-implied-tail"] = Case(lambda x, s, m: topk_kl(x, s.ids_TK, s.logp_TK, m, None, TEMPERATURE), True)
    for impl in ("reference", "chunked"):
        for cap in (None, SOFTCAP):
            out.update(head_cases(impl, cap))
    return out


def head_cases(impl: str, cap: float | None) -> dict[str, Case]:
    def ce(x: Tensor, s: Signals, m: Tensor) -> LossOut:
        return linear_cross_entropy(x, weight_for(x), s.targets_T, m, impl, cap)

    def topk(tail: str) -> Run:
        return lambda x, s, m: linear_topk_kl(x, weight_for(x), s.ids_TK, s.logp_TK, m, s.tail_T, TEMPERATURE, impl, tail, cap)

    def full(divergence: str) -> Run:
        return lambda x, s, m: linear_kl(
            x, weight_for(x), s.hidden_TD, weight_for(x), m, divergence, TEMPERATURE, softcap=cap, teacher_softcap=cap, impl=impl
        )

    label = f"{impl}{'-capped' if cap else ''}"
    out = {f"linear_cross_entropy-{label}": Case(ce, False, False, cap)}
    for tail in ("bucket", "renormalise", "ignore"):
        out[f"linear_topk_kl-{tail}-{label}"] = Case(topk(tail), False, True, cap, proper=tail != "ignore")
    for divergence in ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"):
        out[f"linear_kl-{divergence}-{label}"] = Case(full(divergence), False, True, cap)
    return out


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 2 rows, so that every test crosses chunk borders."""
    monkeypatch.setattr(chunks, "rows_per_chunk", lambda vocabulary, device: 2)


def mask_of(T: int) -> Tensor:
    return torch.arange(T) % 3 != 1


@every_case
@pytest.mark.parametrize("T", [1, 5])
def test_gradcheck(case: Case, T: int) -> None:
    s, mask = signals(T, softcap=case.softcap), mask_of(T)
    assert torch.autograd.gradcheck(lambda x: case.run(x, s, mask).total, (case.student(T),), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.divergence], ids=[n for n, c in CASES.items() if c.divergence])
def test_zero_at_equality_and_positive_elsewhere(case: Case) -> None:
    s, mask = signals(5, softcap=case.softcap), mask_of(5)
    x = case.teacher(s)
    out = case.run(x, s, mask)
    (grad,) = torch.autograd.grad(out.total, x)
    assert abs(out.total.item()) < 1e-10
    if case.proper:
        assert grad.abs().max() < 1e-8
        assert case.run(case.student(5), s, mask).total > 1e-3
    else:
        assert grad.abs().max() > 1e-3


@every_case
def test_masked_rows_count_nothing_whatever_stands_in_them(case: Case) -> None:
    s, mask, x = signals(5, softcap=case.softcap), mask_of(5), case.student(5)
    clean = case.run(x, s, mask)
    (clean_grad,) = torch.autograd.grad(clean.total, x)
    for tensor in (s.hidden_TD, s.logits_TV, s.logp_TK, s.tail_T, s.weights_TN):
        tensor[~mask] = torch.nan
    s.targets_T[~mask], s.ids_TK[~mask] = -100, 10**6
    dirty = x.detach().clone()
    dirty[~mask] = torch.inf
    out = case.run(dirty.requires_grad_(), s, mask)
    (grad,) = torch.autograd.grad(out.total, dirty)
    assert out.count == clean.count == 3
    torch.testing.assert_close(out.total, clean.total, rtol=0, atol=0)
    torch.testing.assert_close(grad, clean_grad, rtol=0, atol=0)
    assert (grad[~mask] == 0).all() and (grad[mask] != 0).any()


@every_case
@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_micro_batches_add_up(case: Case, cut: int) -> None:
    s, mask, x = signals(5, softcap=case.softcap), mask_of(5), case.student(5)
    whole = case.run(x, s, mask)
    parts = [case.run(x[rows], s.at(rows), mask[rows]) for rows in (slice(0, cut), slice(cut, 5))]
    torch.testing.assert_close(parts[0].total + parts[1].total, whole.total)
    assert parts[0].count + parts[1].count == whole.count
    (grad,) = torch.autograd.grad(whole.total, x)
    (grad_of_parts,) = torch.autograd.grad(parts[0].total + parts[1].total, x)
    torch.testing.assert_close(grad_of_parts, grad)


@every_case
@pytest.mark.parametrize("T", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_batch_keeps_the_graph(case: Case, T: int, dtype: torch.dtype) -> None:
    s, x = signals(T, dtype, case.softcap), case.student(T, dtype)
    out = case.run(x, s, torch.zeros(T, dtype=torch.bool))
    (grad,) = torch.autograd.grad(out.total, x)
    assert out.total == 0 and out.count == 0
    assert grad.shape == x.shape and (grad == 0).all()


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_accumulates_wide(case: Case, dtype: torch.dtype) -> None:
    s, x = signals(5, dtype, case.softcap), case.student(5, dtype)
    out = case.run(x, s, mask_of(5))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.total.dtype == out.count.dtype == wide
    (grad,) = torch.autograd.grad(out.total, x)
    assert grad.dtype == dtype


@every_case
def test_never_waits_for_the_device(case: Case) -> None:
    """Meta tensors have no values: whatever reads one (item, bool, nonzero, tolist) raises here."""
    s, x = signals(5, torch.float32, case.softcap).to("meta"), torch.empty_like(case.student(5, torch.float32), device="meta")
    mask = torch.ones(5, dtype=torch.bool, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(mask.all())
    out = case.run(x.requires_grad_(), s, mask)
    (grad,) = torch.autograd.grad(out.total, x)
    assert grad.shape == x.shape and out.count.device.type == "meta"
