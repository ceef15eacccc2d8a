"""Recomputed blocks give the gradients of blocks that keep everything, with LoRA on, off, at audio positions, and every layer read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkd.models.recompute import Recompute
from tests.contracts.cases import CASES
from tests.contracts.tiny import Case, batches, distiller_of

KEPT = {"off": 1.0, "selective": 0.8, "full": 0.35}
"""Most bytes that autograd keeps of the language model's blocks, against `off`"""


def gradients(case: Case) -> dict[str, Tensor]:
    torch.set_default_dtype(torch.float64)
    try:
        distiller = distiller_of(case).double()
        _, batch = batches(distiller, case, 0, "")
    finally:
        torch.set_default_dtype(torch.float32)
    batch.features_BMT = batch.features_BMT.double()
    out: Any = distiller(batch)
    torch.stack([loss.total / loss.count.clamp_min(1.0) for loss in out.values()]).sum().backward()
    return {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["selective", "full"])
@pytest.mark.parametrize("name", ["plora", "everything"])
def test_gradients_are_equal_in_float64(name: str, how: Recompute) -> None:
    wanted = gradients(replace(CASES[name], recompute="off"))
    found = gradients(replace(CASES[name], recompute=how))
    assert wanted.keys() == found.keys() and any("lora_A" in key for key in found)
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert scale > 1e-3
    for key, gradient in wanted.items():
        assert float((found[key] - gradient).abs().max()) <= 1e-10 * scale, key
