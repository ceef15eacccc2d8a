"""Operations are counted as torch counts them, and a GPU's peak is found by its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from speechkd.models.flops import peak_flops, student_flops
from speechkd.teachers.live import TextTeacher
from tests.contracts.cases import CASES
from tests.contracts.tiny import batches, distiller_of


@pytest.mark.parametrize("name", ["loss-topk_kl", "plora"])
def test_a_step_costs_what_torch_counts(name: str) -> None:
    """Attention by plain products, which its counter sees (with the masked half), and every position real."""
    case = replace(CASES[name], recompute="off")
    distiller = distiller_of(case)
    batch = batches(distiller, case, 0, "")[0][0]
    batch.mask_BS = torch.ones_like(batch.mask_BS)
    views = {name: cast(TextTeacher, distiller.teachers[name]).llm(distiller.student) for name in distiller.views()}
    for model in (distiller.student.encoder.encoder, distiller.student.llm.lm, *(llm.lm for llm in views.values())):
        model.set_attn_implementation("eager")
    batch.views = {name: replace(view, mask_BS=torch.ones_like(view.mask_BS)) for name, view in batch.views.items()}
    ours = float(student_flops(distiller.student, views=views).of_batch(batch))
    with FlopCounterMode(display=False) as counter:
        out: Any = distiller(batch)
        torch.stack([loss.total for loss in out.values()]).sum().backward()
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.08)


@pytest.mark.parametrize(
    ("device", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H200", 989), ("NVIDIA L4", 121)],
)
def test_a_peak_is_known_by_the_drivers_name(device: str, tflops: float) -> None:
    assert peak_flops(device) == tflops * 1e12
    assert peak_flops("some other GPU L400") is None
