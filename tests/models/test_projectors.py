"""Every projector of the table: lengths, padding, state round-trip."""

from __future__ import annotations

import pytest
import torch

from speechkd.models.projectors import PROJECTORS

SMALL = {"mlp_stack": {"stack": 4, "hidden": 8}}


@pytest.mark.parametrize("kind", list(PROJECTORS))
@pytest.mark.parametrize("frames", [1, 4, 7, 30])
def test_length_contract_and_state(kind: str, frames: int) -> None:
    part = PROJECTORS.get(kind)
    config = part.Config.model_validate({"kind": kind, **SMALL[kind]})
    torch.manual_seed(0)
    projector, other = part(config, 6, 5), part(config, 6, 5)
    states_BFD = torch.randn(2, frames, 6)
    out = projector(states_BFD)
    assert out.shape == (2, projector.positions(frames), 5)
    other.load_state_dict(projector.state_dict())
    assert torch.equal(other(states_BFD), out)


def test_mlp_stack_equals_the_paper_formula_and_keeps_the_last_frames() -> None:
    """Linear(SiLU(Linear(stacked))) by hand; 7 frames of stack 4 are two positions, the second filled up with zeros."""
    part = PROJECTORS.get("mlp_stack")
    torch.manual_seed(0)
    projector = part(part.Config.model_validate({"stack": 4, "hidden": 8}), 6, 5)
    states = torch.randn(1, 7, 6)
    padded = torch.cat([states, torch.zeros(1, 1, 6)], 1).reshape(2, 24)
    by_hand = torch.nn.functional.silu(padded @ projector.in_weight.T + projector.in_bias) @ projector.out_weight.T + projector.out_bias
    torch.testing.assert_close(projector(states)[0], by_hand)
