"""The row kernels of the losses in Triton's interpreter: values and gradients against float64 autograd, over shapes that do not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels import triton_launch
from speechkd.kernels.linear_cross_entropy.triton_rows import cross_entropy_rows_
from speechkd.kernels.linear_kl.divergence import DIVERGENCES, Divergence
from speechkd.kernels.linear_kl.triton_rows import kl_rows_
from speechkd.kernels.linear_topk_kl import teacher
from speechkd.kernels.linear_topk_kl.reference import topk_kl_rows
from speechkd.kernels.linear_topk_kl.target import TAILS, Target, teacher_target
from speechkd.kernels.linear_topk_kl.triton_rows import teacher_topk_, topk_kl_rows_
from speechkd.kernels.logits import soft_cap

pytestmark = pytest.mark.usefixtures("interpreter")
sweep = settings(max_examples=10, deadline=None, derandomize=True)
ERROR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""Of a gradient, relative: what its own type rounds away (the interpreter cuts off where the GPU rounds), and float32's sums"""

rows, widths = st.integers(1, 2), st.integers(1, 40)
dtypes = st.sampled_from(list(ERROR))
caps = st.sampled_from([None, 30.0, 2.0])
temperatures = st.sampled_from([1.0, 2.0, 0.7])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16, so that few columns are several blocks and a part of one."""
    for kernel in ("cross_entropy", "topk_kl", "teacher_topk", "kl"):
        monkeypatch.setitem(triton_launch.LAUNCH, kernel, (triton_launch.Launch(triton_launch.ANY, 16, 4),))


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def agrees(kernel: Callable[[Tensor, bool], Tensor], truth: Callable[[Tensor], Tensor], logits_CV: Tensor) -> None:
    """Value and gradient of `kernel` are those of `truth`, which is given the same logits in float64."""
    leaf_CV = logits_CV.double().requires_grad_()
    truth_C = truth(leaf_CV)
    (truth_grad_CV,) = torch.autograd.grad(truth_C.sum(), leaf_CV)
    grad_CV = logits_CV.clone()
    torch.testing.assert_close(kernel(grad_CV, True).double(), truth_C.detach(), rtol=3e-6, atol=2e-5)
    assert grad_CV.isfinite().all()
    assert (grad_CV.double() - truth_grad_CV).norm() <= ERROR[logits_CV.dtype] * truth_grad_CV.norm() + 2e-6


@sweep
@given(C=rows, V=widths, cap=caps, dtype=dtypes, seed=st.integers(0, 9))
def test_cross_entropy(C: int, V: int, cap: float | None, dtype: torch.dtype, seed: int) -> None:
    targets_C = torch.randint(V, (C,), generator=torch.Generator().manual_seed(seed))
    agrees(
        lambda z_CV, want: cross_entropy_rows_(z_CV, targets_C, cap, want),
        lambda z_CV: torch.nn.functional.cross_entropy(soft_cap(z_CV, cap), targets_C, reduction="none"),
        normal(seed, C, V, dtype=dtype),
    )


def stored(C: int, V: int, K: int, empty: int, tail: str, temperature: float) -> tuple[Target, Target]:
    """Teacher rows whose last slots are empty, in float32 as trained with and in float64."""
    logp_CV = (normal(11, C, V).double() / temperature).log_softmax(1)
    logp_CK, ids_CK = logp_CV.topk(K, 1)
    logp_CK[:, K - empty :], ids_CK[:, K - empty :] = -torch.inf, -7
    kept_CV = torch.ones_like(logp_CV, dtype=torch.bool).scatter_(1, ids_CK.clamp(min=0), False)
    tail_logp_C = logp_CV.masked_fill(~kept_CV, -torch.inf).logsumexp(1)
    return tuple(teacher_target(ids_CK, logp_CK, tail_logp_C, tail, V, dtype) for dtype in (torch.float32, torch.float64))


@sweep
@given(C=rows, V=widths, K=st.integers(1, 12), empty=st.integers(0, 3), tail=st.sampled_from(TAILS), cap=caps, t=temperatures, dtype=dtypes)
def test_topk_kl(C: int, V: int, K: int, empty: int, tail: str, cap: float | None, t: float, dtype: torch.dtype) -> None:
    K = min(K, V)  # K = V: there is no rest
    target, exact = stored(C, V, K, min(empty, K - 1), tail, t)
    agrees(
        lambda z_CV, want: topk_kl_rows_(z_CV, target, t, cap, want),
        lambda z_CV: topk_kl_rows(soft_cap(z_CV, cap), exact, t),
        normal(5, C, V, dtype=dtype),
    )


@pytest.mark.parametrize("tail", TAILS)
def test_a_rest_of_1e_12_keeps_its_digits(tail: str) -> None:
    """1 - (mass of the kept ids) would be 0 in float32."""
    target, exact = stored(2, 40, 4, 0, tail, 1.0)
    z_CV = torch.full((2, 40), -28.0).scatter(1, target.ids_TK, 2.0)
    agrees(lambda z, want: topk_kl_rows_(z, target, 1.0, None, want), lambda z: topk_kl_rows(z, exact, 1.0), z_CV)


@sweep
@given(
    C=rows,
    V=widths,
    U=widths,
    shared=st.sampled_from(["all", "some", "none"]),
    name=st.sampled_from([*DIVERGENCES, "detached"]),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    t=temperatures,
    t2_scale=st.booleans(),
    caps=st.sampled_from([(None, None), (30.0, None), (2.0, 5.0)]),
    dtype=dtypes,
)
def test_kl(
    C: int,
    V: int,
    U: int,
    shared: str,
    name: str,
    share: float,
    t: float,
    t2_scale: bool,
    caps: tuple[float | None, float | None],
    dtype: torch.dtype,
) -> None:
    U = V if shared == "all" else U
    W = min(V, U)
    shared_W = {"all": None, "some": torch.arange(W) % 3 != 1, "none": torch.zeros(W, dtype=torch.bool)}[shared]
    detach = name == "detached"
    name = "skew_reverse_kl" if detach else name
    how = Divergence(name=name, temperature=t, beta=share, alpha=share, t2_scale=t2_scale, shared_W=shared_W, detach_mixture=detach)
    teacher_CU = normal(7, C, U, dtype=dtype)
    before_CU = teacher_CU.clone()
    agrees(
        lambda z_CV, want: kl_rows_(z_CV, teacher_CU, how, *caps, want),
        lambda z_CV: how.rows(soft_cap(z_CV, caps[0]), soft_cap(teacher_CU.double(), caps[1])),
        normal(5, C, V, dtype=dtype),
    )
    assert teacher_CU.equal(before_CU)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_an_id_that_is_impossible_for_both_changes_nothing(name: str) -> None:
    how = Divergence(name=name)
    student_CV, teacher_CV = normal(1, 3, 21), normal(2, 3, 21)
    student_CV[:, 4::5], teacher_CV[:, 4::5] = -torch.inf, -torch.inf
    agrees(lambda z, want: kl_rows_(z, teacher_CV, how, None, None, want), lambda z: how.rows(z, teacher_CV.double()), student_CV)


@sweep
@given(C=st.integers(0, 4), U=widths, K=st.integers(1, 12), cap=caps, t=temperatures, dtype=dtypes)
def test_live_teacher(C: int, U: int, K: int, cap: float | None, t: float, dtype: torch.dtype) -> None:
    K = min(K, U)
    logits_CU = normal(3, C, U, dtype=dtype)
    logp_CU = (soft_cap(logits_CU.double(), cap) / t).log_softmax(1)
    ids_CK, logp_CK, tail_logp_C = teacher_topk_(logits_CU.clone(), K, t, cap)
    torch.testing.assert_close(logp_CK.double(), logp_CU.gather(1, ids_CK), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logp_CK.double(), logp_CU.topk(K, 1).values, rtol=1e-5, atol=1e-5)
    rest_C = logp_CU.scatter(1, ids_CK, -torch.inf).logsumexp(1)
    torch.testing.assert_close(tail_logp_C.double(), rest_C, rtol=1e-5, atol=1e-5)


def test_a_live_teacher_by_triton_is_the_one_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft-capped, and with fewer ids than asked for."""
    logits_CU, found = normal(3, 4, 9, dtype=torch.bfloat16), []
    for why in (None, "not asked for"):
        monkeypatch.setattr(teacher, "obstacle", lambda given, why=why: why)
        ids_CK, logp_CK, tail_C = teacher.teacher_topk(logits_CU.clone(), 12, 2.0, None, 5.0)
        found.append((logp_CK, logp_CK.new_empty(4, 9).scatter_(1, ids_CK, logp_CK), tail_C))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_no_rows_are_no_launch() -> None:
    target, _ = stored(1, 9, 2, 0, "bucket", 1.0)
    none_CV = torch.empty(0, 9)
    assert cross_entropy_rows_(none_CV, torch.empty(0, dtype=torch.long), None, True).shape == (0,)
    assert topk_kl_rows_(none_CV, target.rows(slice(0)), 1.0, None, True).shape == (0,)
    assert kl_rows_(none_CV, none_CV, Divergence(name="jsd"), None, None, True).shape == (0,)


@pytest.mark.parametrize("wrong", [-1, -100, 9, 2**40])
def test_an_id_outside_the_vocabulary_is_nan_and_touches_no_memory(wrong: int) -> None:
    around_RV = normal(1, 5, 9)  # the rows before and after are the neighbours in memory
    before_RV, inside_CV = around_RV.clone(), around_RV[1:4]
    assert cross_entropy_rows_(inside_CV, torch.tensor([0, wrong, 8]), None, True).isnan().tolist() == [False, True, False]
    assert around_RV[[0, 4]].equal(before_RV[[0, 4]]) and around_RV.isfinite().all()
    target, _ = stored(3, 9, 2, 0, "bucket", 1.0)
    target.ids_TK[1, 0] = wrong
    around_RV.copy_(before_RV)
    assert topk_kl_rows_(inside_CV, target, 1.0, None, True).isnan().tolist() == [False, True, False]
    assert around_RV[[0, 4]].equal(before_RV[[0, 4]]) and around_RV.isfinite().all()


def test_a_nan_among_the_logits_is_not_lost() -> None:
    logits_CV, target = normal(1, 3, 40), stored(3, 40, 2, 0, "bucket", 1.0)[0]
    logits_CV[1, 20] = torch.nan
    for value_C in (
        cross_entropy_rows_(logits_CV.clone(), torch.zeros(3, dtype=torch.long), None, False),
        topk_kl_rows_(logits_CV.clone(), target, 1.0, None, False),
        kl_rows_(logits_CV.clone(), normal(2, 3, 40), Divergence(name="jsd"), None, None, False),
    ):
        assert value_C.isnan().tolist() == [False, True, False]


def test_rows_may_lie_apart() -> None:
    """A view of wider rows: neither read nor written beyond its columns."""
    wide_CV = normal(1, 3, 50)
    before_CV = wide_CV.clone()
    agrees(
        lambda z_CV, want: kl_rows_(z_CV, before_CV[:, 20:41], Divergence(name="reverse_kl"), None, None, want),
        lambda z_CV: Divergence(name="reverse_kl").rows(z_CV, before_CV[:, 20:41].double()),
        wide_CV[:, :21],
    )
    cross_entropy_rows_(wide_CV[:, :21], torch.zeros(3, dtype=torch.long), None, True)
    assert wide_CV[:, 21:].equal(before_CV[:, 21:]) and not wide_CV[:, :21].equal(before_CV[:, :21])


def test_without_gradient_the_value_is_the_same() -> None:
    logits_CV, targets_C = normal(1, 2, 40), torch.tensor([0, 39])
    target, _ = stored(2, 40, 3, 1, "bucket", 2.0)
    kernels: list[Callable[[Tensor, bool], Tensor]] = [
        lambda z_CV, want: cross_entropy_rows_(z_CV, targets_C, 30.0, want),
        lambda z_CV, want: topk_kl_rows_(z_CV, target, 2.0, 30.0, want),
        lambda z_CV, want: kl_rows_(z_CV, logits_CV.flip(0), Divergence(name="jsd", beta=0.3), 30.0, None, want),
    ]
    for kernel in kernels:
        assert kernel(logits_CV.clone(), False).equal(kernel(logits_CV.clone(), True))


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(InputError, match="float64"):
        cross_entropy_rows_(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.long), None, False)
    with pytest.raises(InputError, match="vocabulary 3 and teacher vocabulary 4 differ"):
        kl_rows_(torch.zeros(2, 3), torch.zeros(2, 4), Divergence(name="jsd"), None, None, False)
    with pytest.raises(InputError, match="must have the 2 rows"):
        kl_rows_(torch.zeros(2, 3), torch.zeros(1, 3), Divergence(name="jsd"), None, None, False)


def test_the_obstacle_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton_launch.obstacle(torch.zeros(1)) is None
    assert "float64" in str(triton_launch.obstacle(torch.zeros(1, dtype=torch.float64)))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "set TRITON_INTERPRET=1 to interpret" in str(triton_launch.obstacle(torch.zeros(1)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert triton_launch.obstacle(torch.zeros(1)) == "triton is not installed"
