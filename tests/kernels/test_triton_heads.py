"""The losses on an LM head by Triton, whole: against the reference in float64, as much as the chunked form in the same type is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkd.kernels import chunks
from tests.kernels.test_linear_heads import OPS, Op, problem

pytestmark = pytest.mark.usefixtures("interpreter")


def value_and_grads(op: Op, impl: str, dtype: torch.dtype, cap: float | None) -> tuple[Tensor, ...]:
    """Of a head that trains."""
    hidden, weight, signals = problem(9, 37, torch.bfloat16)  # the same numbers in every type
    signals = {name: x.to(dtype) if x.is_floating_point() else x for name, x in signals.items()}
    leaves = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    total = op(*leaves, signals, impl, cap).total
    return (total.detach().double(), *(grad.double() for grad in torch.autograd.grad(total, leaves)))


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
@pytest.mark.parametrize(("dtype", "cap"), [(torch.float32, 5.0), (torch.bfloat16, None)])
def test_values_and_gradients(op: Op, dtype: torch.dtype, cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 0)  # several chunks
    truth, chunked = value_and_grads(op, "reference", torch.float64, cap), value_and_grads(op, "chunked", dtype, cap)
    for ours, theirs, wanted in zip(value_and_grads(op, "triton", dtype, cap), chunked, truth, strict=True):
        # the interpreter cuts off where the GPU rounds
        unit = 1e-5 if dtype == torch.float32 else 8e-3
        assert (ours - wanted).norm() <= 1.5 * (theirs - wanted).norm() + unit * wanted.norm()
