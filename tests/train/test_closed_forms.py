"""Training with the closed forms is training with their plain composition: one loss curve."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechkd.kernels import dispatch
from speechkd.models.projectors import cross_decoder
from tests.contracts.cases import CASES
from tests.contracts.tiny import batches, distiller_of
from tests.contracts.worker import loss_of

STEPS = 8
CLOSED = ("stack_norm_mlp", "stack_norm_linear", "act_linear", "layer_sum", "weighted_cka")


def curve(name: str) -> list[float]:
    """Loss at each step of Adam on changing micro-batches."""
    case = CASES[name]
    distiller = distiller_of(case)
    adam = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=3e-3, foreach=True)
    losses = []
    for step in range(STEPS):
        batch = batches(distiller, case, step % 4, "")[1]
        out: Any = distiller(batch)
        loss = loss_of(distiller, out, distiller.counts(batch))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["last-layer", "last-layer-gated", "cka-plain", "projector-windowed_qformer"])
def test_the_loss_curve_is_that_of_the_plain_composition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = curve(name)
    chosen = dispatch.choose

    def plain(op: str, impl: str, obstacles: Any, first: object) -> dispatch.Choice:
        return chosen(op, "reference" if op in CLOSED else impl, obstacles, first)

    monkeypatch.setattr(dispatch, "choose", plain)
    monkeypatch.setattr(cross_decoder, "absorbing_is_cheaper", lambda *_: False)
    theirs = curve(name)
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6) and ours != theirs, "equal to the last bit: the same form ran twice"
    assert abs(ours[-1] - ours[0]) > 1e-2, "nothing was learned"
