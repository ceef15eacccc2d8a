"""The chunked frozen head against float64: values, gradients, memory, and a weight that is gone by backward (ZeRO-3)."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut
from speechkd.kernels import chunks, dispatch, linear_cross_entropy, linear_kl, linear_topk_kl

T, V, D, E, K = 61, 257, 24, 20, 12

Op = Callable[[Tensor, Tensor, dict[str, Tensor], str, float | None], LossOut]

OPS: dict[str, Op] = {
    "linear_cross_entropy": lambda h, w, s, impl, cap: linear_cross_entropy(h, w, s["targets"], s["mask"], impl, cap),
    "linear_topk_kl": lambda h, w, s, impl, cap: linear_topk_kl(h, w, s["ids"], s["logp"], s["mask"], s["tail"], 2.0, impl, "bucket", cap),
    "linear_kl": lambda h, w, s, impl, cap: linear_kl(
        h, w, s["teacher_hidden"], s["teacher_weight"], s["mask"], "jsd", 2.0, softcap=cap, teacher_softcap=cap, impl=impl
    ),
}


def divergence(name: str, temperature: float = 1.0, beta: float = 0.5, alpha: float = 0.1, t2_scale: bool = False) -> Op:
    return lambda h, w, s, impl, cap: linear_kl(
        h, w, s["teacher_hidden"], s["teacher_weight"], s["mask"], name, temperature, beta, alpha, t2_scale, None, cap, cap, impl
    )


DIVERGENCES: dict[str, Op] = {
    "forward": divergence("forward_kl", 2.0, t2_scale=True),
    "reverse": divergence("reverse_kl", 0.7),
    "jsd 0.1": divergence("jsd", beta=0.1, t2_scale=True),
    "jsd 0": divergence("jsd", beta=0.0),
    "jsd 1": divergence("jsd", beta=1.0),
    "skew": divergence("skew_kl", 2.0, alpha=0.3),
    "skew 0": divergence("skew_kl", alpha=0.0),
    "skew reverse": divergence("skew_reverse_kl", 2.0, alpha=0.3),
    "skew reverse 0": divergence("skew_reverse_kl", alpha=0.0),
}
TAILS: dict[str, Op] = {
    tail: lambda h, w, s, impl, cap, tail=tail: linear_topk_kl(  # type: ignore[misc]
        h, w, s["ids"], s["logp"], s["mask"], None, 1.5, impl, tail, cap
    )
    for tail in ("bucket", "renormalise", "ignore")
}
EVERY = OPS | DIVERGENCES | TAILS
every_form = pytest.mark.parametrize("op", EVERY.values(), ids=EVERY.keys())
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def problem(rows: int = T, vocabulary: int = V, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(5)
    teacher_hidden, teacher_weight = (torch.randn(n, E, generator=g, dtype=torch.float64) for n in (rows, vocabulary))
    logp = (teacher_hidden @ teacher_weight.T / 2.0).log_softmax(1)
    top = logp.topk(min(K, vocabulary), 1)
    floats = {
        "logp": top.values,
        "tail": logp.scatter(1, top.indices, -torch.inf).logsumexp(1),
        "teacher_hidden": teacher_hidden,
        "teacher_weight": teacher_weight,
    }
    rest = {"ids": top.indices, "targets": torch.randint(vocabulary, (rows,), generator=g), "mask": torch.arange(rows) % 5 != 2}
    hidden, weight = (torch.randn(n, D, generator=g, dtype=torch.float64) for n in (rows, vocabulary))
    return hidden.to(dtype), weight.to(dtype), {**{k: x.to(dtype) for k, x in floats.items()}, **rest}


def value_and_grad(
    op: Op, impl: str, dtype: torch.dtype, rows: int = T, vocabulary: int = V, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    hidden, weight, signals = problem(rows, vocabulary, dtype)
    hidden.requires_grad_(), weight.requires_grad_()
    out = op(hidden, weight, signals, impl, cap)
    value = out.total / out.count.clamp(min=1)
    grads = torch.autograd.grad(value, (hidden, weight))
    return value.detach().double(), torch.cat([grad.double().flatten() for grad in grads])


@every_form
@pytest.mark.parametrize("cap", [None, 30.0, 2.0])
@pytest.mark.parametrize("rows,vocabulary", [(T, V), (0, V), (1, V), (17, 2), (33, 129)])
def test_chunked_is_the_reference(op: Op, rows: int, vocabulary: int, cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, and gradients of hidden states and of a head that trains."""
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 0)  # 16 rows, the least
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", 5 * vocabulary)
    truth, truth_grad = value_and_grad(op, "reference", torch.float64, rows, vocabulary, cap)
    value, grad = value_and_grad(op, "chunked", torch.float64, rows, vocabulary, cap)
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, truth_grad, rtol=1e-9, atol=1e-12)
    value32, grad32 = value_and_grad(op, "chunked", torch.float32, rows, vocabulary, cap)
    torch.testing.assert_close(value32, truth, rtol=1e-5, atol=1e-6)
    _, autograd32 = value_and_grad(op, "reference", torch.float32, rows, vocabulary, cap)  # its own rounding, where gradients cancel
    assert (grad32 - truth_grad).norm() <= 1e-5 * truth_grad.norm() + 3 * (autograd32 - truth_grad).norm() + 1e-9


@pytest.mark.parametrize("name", ["linear_cross_entropy", "linear_topk_kl", *TAILS])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("rows,vocabulary", [(T, V), (0, V), (1, V), (17, 2), (33, 129)])
@pytest.mark.parametrize("tile", [1, 64 * T, 1 << 20])
def test_tiled_is_the_reference(
    name: str, rows: int, vocabulary: int, cap: float | None, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tiles, several groups of rows, ids that the teacher names in any tile."""
    tiled = sys.modules["speechkd.kernels.linear_topk_kl.tiled"]
    monkeypatch.setattr(tiled, "TILE_ELEMENTS", tile)
    monkeypatch.setattr(tiled, "ROWS", 24)

    def run(impl: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        hidden, weight, signals = problem(rows, vocabulary, dtype)
        total = EVERY[name](hidden.requires_grad_(), weight, signals, impl, cap).total
        return total.detach().double(), torch.autograd.grad(3.0 * total, hidden)[0].double()

    truth, truth_grad = run("reference", torch.float64)
    for dtype, by in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        value, grad = run("tiled", dtype)
        torch.testing.assert_close(value, truth, rtol=by, atol=by)
        assert (grad - truth_grad).norm() <= by * truth_grad.norm() + 1e-12


def test_many_rows_of_a_large_vocabulary_are_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, s = problem(dtype=torch.float32)
    for elements, name in ((T * V, "chunked"), (20 * V, "tiled")):
        monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", elements)
        linear_cross_entropy(hidden, weight, s["targets"], s["mask"])
        assert dispatch.latest("linear_cross_entropy").name == name
    with pytest.raises(InputError, match="`tiled` .* the head's weight wants a gradient"):
        linear_cross_entropy(hidden, weight.requires_grad_(), s["targets"], s["mask"], "tiled")


@every_form
@pytest.mark.parametrize("rows,vocabulary,cap", [(7, 33, None), (0, 33, None), (3, 2, 30.0)])
def test_triton_is_the_reference(
    op: Op, rows: int, vocabulary: int, cap: float | None, monkeypatch: pytest.MonkeyPatch, interpreter: None
) -> None:
    """The row kernels inside the chunk loop, interpreted; `test_triton_rows.py` sweeps the kernels themselves."""
    monkeypatch.setattr(chunks, "rows_per_chunk", lambda vocabulary, device: 4)
    truth, truth_grad = value_and_grad(op, "reference", torch.float64, rows, vocabulary, cap)
    _, autograd32 = value_and_grad(op, "reference", torch.float32, rows, vocabulary, cap)
    value, grad = value_and_grad(op, "triton", torch.float32, rows, vocabulary, cap)
    torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-6)
    assert (grad - truth_grad).norm() <= 1e-5 * truth_grad.norm() + 3 * (autograd32 - truth_grad).norm() + 1e-9


def eager_bf16(name: str, hidden: Tensor, weight: Tensor, s: dict[str, Tensor]) -> Tensor:
    """What one writes without thinking: everything in half precision."""
    z = (hidden @ weight.T)[s["mask"]]
    if name == "linear_cross_entropy":
        return torch.nn.functional.cross_entropy(z, s["targets"][s["mask"]])
    if name == "linear_topk_kl":
        logq = (z / 2.0).log_softmax(1)
        ids, logp, tail = s["ids"][s["mask"]], s["logp"][s["mask"]], s["tail"][s["mask"]]
        rest = logq.scatter(1, ids, -torch.inf).logsumexp(1)
        return ((logp.exp() * (logp - logq.gather(1, ids))).sum(1) + tail.exp() * (tail - rest)).mean()
    logp, logq = ((s["teacher_hidden"] @ s["teacher_weight"].T)[s["mask"]] / 2.0).log_softmax(1), (z / 2.0).log_softmax(1)
    m = ((logp.exp() + logq.exp()) / 2).log()
    return (0.5 * (logp.exp() * (logp - m)).sum(1) + 0.5 * (logq.exp() * (logq - m)).sum(1)).mean()


@pytest.mark.parametrize(
    "name,impl", [*((name, "chunked") for name in OPS), ("linear_cross_entropy", "tiled"), ("linear_topk_kl", "tiled")]
)
def test_bf16_is_no_worse_than_eager_bf16(name: str, impl: str) -> None:
    hidden, weight, signals = problem(dtype=torch.bfloat16)
    wide = {k: x.float() if x.is_floating_point() else x for k, x in signals.items()}
    truth_in = hidden.float().requires_grad_()
    truth = OPS[name](truth_in, weight.float(), wide, "reference", None)
    truth_value = truth.total / truth.count
    (truth_grad,) = torch.autograd.grad(truth_value, truth_in)

    def errors(value: Tensor, x: Tensor) -> tuple[float, float]:
        (grad,) = torch.autograd.grad(value, x)
        return abs(value.item() - truth_value.item()), (grad.float() - truth_grad).norm().item() / truth_grad.norm().item()

    ours_in, eager_in = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    ours = OPS[name](ours_in, weight, signals, impl, None)
    value_error, grad_error = errors(ours.total / ours.count, ours_in)
    eager_value_error, eager_grad_error = errors(eager_bf16(name, eager_in, weight, signals), eager_in)
    assert value_error <= eager_value_error + 1e-3 * abs(truth_value.item())
    assert grad_error <= eager_grad_error * 1.05
    assert grad_error < 0.02


class Largest(TorchDispatchMode):
    """The most elements that any op's result has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            self.numel = max(self.numel, x.numel() if isinstance(x, Tensor) else 0)
        return out


@every_op
def test_chunked_never_makes_all_logits(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 16 * V)
    hidden, weight, signals = problem(dtype=torch.float32)
    largest = {}
    for impl in ("chunked", "reference"):
        with Largest() as mode:
            op(hidden.clone().requires_grad_(), weight, signals, impl, 30.0).total.backward()
        largest[impl] = mode.numel
    assert largest["reference"] >= int(signals["mask"].sum()) * V
    assert largest["chunked"] <= max((32 if op is OPS["linear_kl"] else 16) * V, V * D, T * D), "dense: twice, up to 512 rows"


@every_op
def test_weight_may_be_gone_by_backward(op: Op) -> None:
    """ZeRO-3 takes a gathered weight apart after forward."""
    hidden, weight, signals = problem(dtype=torch.float32)
    weight = torch.nn.Parameter(weight, requires_grad=False)
    hidden.requires_grad_()
    kept = op(hidden, weight, signals, "auto", None).total
    (expected,) = torch.autograd.grad(kept, hidden)
    out = op(hidden, weight, signals, "auto", None).total
    weight.data.fill_(torch.nan)
    weight.data = torch.empty(0)
    (grad,) = torch.autograd.grad(3.0 * out, hidden)
    torch.testing.assert_close(grad, 3.0 * expected)


@every_op
def test_a_head_that_trains_and_hidden_states_that_do_not(op: Op) -> None:
    hidden, weight, signals = problem(dtype=torch.float32)
    weight.requires_grad_()
    grads = []
    for impl in ("reference", "chunked"):
        out = op(hidden, weight, signals, impl, None)
        grads.append(torch.autograd.grad(2.0 * out.total, weight)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not op(hidden.requires_grad_(), weight, signals, "chunked", None).total.requires_grad


@every_op
def test_a_mask_that_keeps_nothing_keeps_the_graph(op: Op) -> None:
    hidden, weight, signals = problem(dtype=torch.float32)
    signals["mask"] = torch.zeros_like(signals["mask"])
    hidden.requires_grad_()
    out = op(hidden.masked_fill(torch.tensor(True), torch.nan), weight, signals, "auto", None)
    assert out.total.item() == 0 == out.count.item()
    assert not torch.autograd.grad(out.total, hidden)[0].any()


@every_op
def test_value_without_gradient(op: Op) -> None:
    hidden, weight, signals = problem(dtype=torch.float32)
    expected = op(hidden.clone().requires_grad_(), weight, signals, "reference", 30.0).total
    torch.testing.assert_close(op(hidden, weight, signals, "chunked", 30.0).total, expected.detach())


@every_op
def test_under_autocast(op: Op) -> None:
    hidden, weight, signals = problem(dtype=torch.float32)
    hidden.requires_grad_()
    results = []
    for impl in ("reference", "chunked"):
        with torch.autocast("cpu", torch.bfloat16):
            out = op(hidden, weight, signals, impl, None)
        results.append((out.total, torch.autograd.grad(out.total, hidden)[0]))
    assert results[0][0].dtype == results[1][0].dtype == torch.float32
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=0)
    assert (results[1][1] - results[0][1]).norm() < 0.02 * results[0][1].norm()


@every_op
def test_wrong_input_is_one_line(op: Op) -> None:
    hidden, weight, signals = problem(dtype=torch.float32)
    with pytest.raises(
        InputError, match="unknown implementation .* `chunky`; allowed: auto, chunked, reference, (tiled, )?triton; did you mean `chunked`"
    ):
        op(hidden, weight, signals, "chunky", None)
    with pytest.raises(InputError, match="`triton` of .* cannot run: no CUDA device; set TRITON_INTERPRET=1 to interpret"):
        op(hidden, weight, signals, "triton", None)
    with pytest.raises(InputError, match="softcap"):
        op(hidden, weight, signals, "auto", 0.0)
    with pytest.raises(InputError, match="rows of mask_T"):
        op(hidden[1:], weight, signals, "auto", None)


def test_vocabularies_that_differ() -> None:
    hidden, weight, s = problem()
    teacher_weight = torch.cat([s["teacher_weight"], torch.ones(9, E, dtype=torch.float64)])
    with pytest.raises(InputError, match=f"{V} and teacher vocabulary {V + 9} differ"):
        linear_kl(hidden, weight, s["teacher_hidden"], teacher_weight, s["mask"])
    grads = []
    for impl in ("reference", "chunked"):
        x = hidden.clone().requires_grad_()
        out = linear_kl(x, weight, s["teacher_hidden"], teacher_weight, s["mask"], shared_W=torch.arange(V) != 3, impl=impl)
        grads.append(torch.autograd.grad(out.total, x)[0])
    assert grads[0].isfinite().all()
    torch.testing.assert_close(grads[1], grads[0])
