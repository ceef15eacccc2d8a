"""Rows, layers and frames that lie further apart than 32 bits count, and sums longer than bfloat16 counts, in Triton's interpreter.

An offset that wrapped around lies before the tensor: such a kernel does not fail here, it crashes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechkd.kernels.layer_sum.triton_stack_norm import Prologue, Stacks, stack_norm, stack_norm_backward_, stacks
from speechkd.kernels.linear_cross_entropy.triton_rows import cross_entropy_rows_
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.linear_kl.triton_rows import kl_rows_
from speechkd.kernels.linear_topk_kl.target import teacher_target
from speechkd.kernels.linear_topk_kl.triton_rows import teacher_topk_, topk_kl_rows_
from speechkd.kernels.stack_norm_mlp.triton_activation import activate, activate_backward_

pytestmark = pytest.mark.usefixtures("interpreter")
BEYOND = 1 << 31
"""The first offset that 32 bits do not hold; 8,192 rows of 262,144 ids reach it"""
V = 40


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """A little more than 2^31 bfloat16 values in a file that is a hole but for what is written."""
    from triton.runtime import interpreter

    # it copies whole arguments back, though on a CPU they are the same memory
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    return torch.from_file(str(tmp_path / "far"), shared=True, size=BEYOND + 4096, dtype=torch.bfloat16)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def apart(far: Tensor, near_CV: Tensor, place: int = 0) -> Tensor:
    """The same three rows, 2^30 elements from each other: the last one's offset is 2^31."""
    rows_CV = far[place:].as_strided(near_CV.shape, (BEYOND // 2, 1), place)
    return rows_CV.copy_(near_CV)


def _topk(z_CV: Tensor, other_CV: Tensor) -> Tensor:
    logp_CK, ids_CK = normal(3, 3, V).float().log_softmax(1).topk(5)
    return topk_kl_rows_(z_CV, teacher_target(ids_CK, logp_CK, None, "bucket", V, torch.float32), 1.0, None, True)


def _gate(z_CV: Tensor, other_CV: Tensor) -> Tensor:
    out_CV, grad_CV = activate(z_CV, None, "silu", other_CV), normal(4, 3, V)
    activate_backward_(grad_CV, z_CV, None, "silu", other_CV)
    return torch.cat([out_CV, grad_CV])


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda z, other: cross_entropy_rows_(z, torch.tensor([0, 7, V - 1]), None, True),
    "topk_kl": _topk,
    "teacher_topk": lambda z, other: torch.cat(teacher_topk_(z, 5)[1:2]),
    "kl": lambda z, other: kl_rows_(z, other, Divergence(name="jsd"), None, None, True),
    "activation": _gate,
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_rows_that_lie_apart_are_those_that_lie_together(kernel: Callable[[Tensor, Tensor], Tensor], far: Tensor) -> None:
    near = [normal(1, 3, V), normal(2, 3, V)]
    given = [apart(far, near[0]), apart(far, near[1], 1024)]
    assert given[0].stride(0) * 2 >= BEYOND
    assert kernel(*given).equal(kernel(*near))
    for ours, wanted in zip(given, near, strict=True):
        assert ours.equal(wanted), "what was written in place"


def test_layers_and_frames_beyond_32_bits(far: Tensor) -> None:
    """Two layers 2^31 elements apart, then one whose last frames begin there."""
    states = [normal(1, 1, 6, 16), normal(2, 1, 6, 16)]
    moved = [far[:96].view(1, 6, 16).copy_(states[0]), far[BEYOND : BEYOND + 96].view(1, 6, 16).copy_(states[1])]
    weights_L, rows, grads = torch.tensor([0.3, 0.7]), stacks(torch.arange(3), 6, 2), []
    for given in (states, moved):
        prologue = Prologue(given, weights_L, rows, 2, "layer")
        normed = stack_norm(prologue, torch.bfloat16)
        share_L = stack_norm_backward_(normal(3, 3, 32), normed, prologue, want_input=False)
        assert share_L is not None
        grads.append(torch.cat([normed.x_hat_RS.flatten(), share_L]))
    assert grads[0].equal(grads[1])
    wide_BFC = far.view(1, -1, 4096)
    wide_BFC[0, -2:] = normal(4, 2, 4096)
    rows = Stacks(torch.tensor([wide_BFC.shape[1] - 2]), torch.tensor([2], dtype=torch.int32))
    far_RS = stack_norm(Prologue([wide_BFC], None, rows, 2), torch.bfloat16).x_hat_RS
    assert far_RS.equal(normal(4, 2, 4096).view(1, -1)) and wide_BFC.shape[1] * 4096 > BEYOND


def test_a_quarter_of_a_million_equal_logits_are_summed_in_float32() -> None:
    """In bfloat16 a sum of ones ends at 256."""
    wide, target = 262_144, torch.tensor([5])
    z_CV = torch.ones(1, wide, dtype=torch.bfloat16)
    assert cross_entropy_rows_(z_CV, target, None, True).item() == pytest.approx(math.log(wide), rel=1e-5)
    assert z_CV[0, 0].item() == pytest.approx(1 / wide, rel=1e-2) and z_CV[0, 5].item() == pytest.approx(-1.0, rel=1e-2)
