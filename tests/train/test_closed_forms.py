"""Training with the closed forms is training with their plain composition: one loss curve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from speechkd.kernels import dispatch
from speechkd.models.projectors import cross_decoder, gated_mlp
from tests.contracts.cases import CASES
from tests.contracts.tiny import batches, distiller_of
from tests.contracts.worker import loss_of

STEPS = 8


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


def plain_norm_linear(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float, real: Tensor | None) -> Tensor:
    normed = layer_norm(x.unflatten(1, (-1, len(gamma))), gamma.shape, gamma, beta, eps)
    return linear((normed if real is None else normed * real.unsqueeze(2)).flatten(1), weight, bias)


@pytest.mark.parametrize("name", ["last-layer", "last-layer-gated", "cka-plain", "projector-windowed_qformer"])
def test_the_loss_curve_is_that_of_the_plain_composition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = curve(name)
    chosen = dispatch.choose

    def plain(op: str, impl: str, obstacles: Any, first: object) -> dispatch.Choice:
        return chosen(op, "reference" if op in ("stack_norm_mlp", "layer_sum", "weighted_cka") else impl, obstacles, first)

    monkeypatch.setattr(dispatch, "choose", plain)
    monkeypatch.setattr(cross_decoder, "absorbing_is_cheaper", lambda *_: False)
    monkeypatch.setattr(gated_mlp, "norm_linear", plain_norm_linear)
    theirs = curve(name)
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6) and ours != theirs, "equal to the last bit: the same form ran twice"
    assert abs(ours[-1] - ours[0]) > 1e-2, "nothing was learned"
