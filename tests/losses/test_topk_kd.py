"""Top-k targets: hand-computed values, tail policies, empty slots, and what a student trained on them becomes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.data.columns.signals import SignalsConfig, TopKStore, decode, encode_topk
from speechkd.losses.divergences import forward_kl
from speechkd.losses.topk_kd import topk_kl

ONE = torch.ones(1, dtype=torch.bool)


def stored(p: list[float], k: int) -> tuple[Tensor, Tensor, Tensor]:
    probs = torch.tensor([p], dtype=torch.float64)
    top = probs.topk(k)
    return top.indices, top.values.log(), (1 - top.values.sum(1)).log()


def test_hand_computed() -> None:
    ids, logp, tail = stored([0.5, 0.3, 0.15, 0.05], 2)
    logits = torch.tensor([[0.25, 0.25, 0.4, 0.1]], dtype=torch.float64).log() + 3.0
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    terms = p * (p / q).log()
    torch.testing.assert_close(topk_kl(logits, ids, logp, ONE, tail).total, terms.sum())
    torch.testing.assert_close(topk_kl(logits, ids, logp, ONE, None).total, terms.sum())
    torch.testing.assert_close(topk_kl(logits, ids, logp, ONE, tail, tail="ignore").total, terms[:2].sum())
    p2, q2 = p[:2] / 0.8, q[:2] / 0.5
    torch.testing.assert_close(topk_kl(logits, ids, logp, ONE, tail, tail="renormalise").total, (p2 * (p2 / q2).log()).sum())


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "ignore"])
def test_whole_vocabulary_kept_is_the_full_kl(tail: str) -> None:
    g = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(3, 8, generator=g, dtype=torch.float64) for _ in range(2))
    logp, ids = teacher.div(1.3).log_softmax(1).sort(1, descending=True)
    mask = torch.ones(3, dtype=torch.bool)
    for dtype in (torch.float64, torch.float32):  # in float32 the kept mass rounds above or below 1: no tail may come of it
        x = student.to(dtype).requires_grad_()
        out = topk_kl(x, ids, logp.to(dtype), mask, None, 1.3, tail).total
        torch.testing.assert_close(out, forward_kl(student, teacher, mask, 1.3).total.to(dtype))
        assert torch.autograd.grad(out, x)[0].isfinite().all()


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "ignore"])
@pytest.mark.parametrize("pad_id", [0, 3])
def test_empty_slots_are_not_there(tail: str, pad_id: int) -> None:
    ids, logp, tail_logp = stored([0.1, 0.5, 0.25, 0.15], 2)
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    plain = topk_kl(logits, ids, logp, ONE, tail_logp, tail=tail).total
    wide_ids = torch.cat([torch.tensor([[pad_id]]), ids, torch.tensor([[pad_id]])], 1)
    wide_logp = torch.cat([torch.tensor([[-torch.inf]]), logp, torch.tensor([[-torch.inf]])], 1)
    padded = topk_kl(logits, wide_ids, wide_logp, ONE, tail_logp, tail=tail).total
    torch.testing.assert_close(padded, plain)
    torch.testing.assert_close(torch.autograd.grad(padded, logits), torch.autograd.grad(plain, logits))


def test_rounded_storage_gives_no_negative_kl() -> None:
    g = torch.Generator().manual_seed(3)
    teacher = 4 * torch.randn(200, 50, generator=g, dtype=torch.float64)
    logp = teacher.log_softmax(1)
    top = logp.topk(8, 1)
    tail = logp.scatter(1, top.indices, -torch.inf).logsumexp(1)
    for row in range(200):
        at = slice(row, row + 1)
        out = topk_kl(teacher[at].float(), top.indices[at], top.values[at].half(), ONE, tail[at].half())
        assert -2e-6 < out.total.item() < 1e-3


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([0.3, 3.0, 30.0]), st.booleans(), st.sampled_from([8, 16, 32]))
@settings(max_examples=200, deadline=None)
def test_a_packed_row_with_its_tail_never_has_a_negative_kl(seed: int, k: int, sharpness: float, equal: bool, bits: int) -> None:
    """Any teacher, any student (equal ones too, where rounding would show), through the codec and back."""
    g = torch.Generator().manual_seed(seed)
    teacher = sharpness * torch.randn(3, 40, generator=g)
    student = teacher if equal else sharpness * torch.randn(3, 40, generator=g)
    logp = teacher.log_softmax(1)
    top = logp.topk(k, 1)
    store = TopKStore(k=k, bits=bits)  # type: ignore[arg-type]
    packed = encode_topk(store, top.indices, top.values, logp.scatter(1, top.indices, -torch.inf).logsumexp(1), 40)
    back = decode(SignalsConfig(topk=store), {"topk"}, {"topk": packed}, 3, 40)
    for row in range(3):
        at = slice(row, row + 1)
        ids, logp_K, tail = (getattr(back, name)[at] for name in ("ids_TK", "logp_TK", "tail_logp_T"))
        assert topk_kl(student[at].double(), ids, logp_K.double(), ONE, tail.double()).total >= -1e-12
        assert topk_kl(student[at], ids, logp_K, ONE, tail).total >= -1e-5


def test_small_student_tails_keep_their_digits() -> None:
    """1 - q_kept is 0 in float32 here; the tail must come from the ids outside."""
    ids, logp, tail = stored([0.9, 0.1 - 1e-4, 5e-5, 5e-5], 2)
    logits = torch.tensor([[20.0, 19.0, 0.0, 0.0]])
    exact = topk_kl(logits.double(), ids, logp, ONE, tail).total
    torch.testing.assert_close(topk_kl(logits, ids, logp.float(), ONE, tail.float()).total.double(), exact, rtol=1e-5, atol=0)


def test_bucket_is_unbiased_on_the_kept_ids_and_ignoring_the_tail_is_not() -> None:
    ids, logp, tail_logp = stored([0.4, 0.2, 0.2, 0.1, 0.1], 1)
    kept = {}
    for tail in ("bucket", "ignore"):
        logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            (grad,) = torch.autograd.grad(topk_kl(logits, ids, logp, ONE, tail_logp, tail=tail).total, logits)
            logits = (logits - 1.0 * grad).detach().requires_grad_()
        kept[tail] = logits.softmax(1)[0, 0].item()
    assert abs(kept["bucket"] - 0.4) < 1e-4
    assert kept["ignore"] > 0.95


def test_wrong_input_is_refused() -> None:
    ids, logp, tail = stored([0.5, 0.5], 1)
    logits = torch.zeros(1, 2)
    with pytest.raises(InputError, match="did you mean `bucket`"):
        topk_kl(logits, ids, logp, ONE, tail, tail="buckets")
    with pytest.raises(InputError, match="K >= 1"):
        topk_kl(logits, ids[:, :0], logp[:, :0], ONE)
    with pytest.raises(InputError, match="temperature"):
        topk_kl(logits, ids, logp, ONE, temperature=-1.0)
