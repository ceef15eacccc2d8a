"""Reference: one scaled state after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import layer_norm


def layer_sum(states_LBFD: Sequence[Tensor], weights_L: Tensor, normalise: bool, frames_X: Tensor | None) -> Tensor:
    """See the package."""
    if frames_X is not None:
        states_LBFD = [states_BFD.flatten(0, 1)[frames_X] for states_BFD in states_LBFD]
    weights_L = weights_L.to(states_LBFD[0].dtype)
    if normalise:
        states_LBFD = [layer_norm(states_BFD, states_BFD.shape[-1:]) for states_BFD in states_LBFD]
    mixed = states_LBFD[0] * weights_L[0]
    for layer in range(1, len(states_LBFD)):
        mixed = mixed + states_LBFD[layer] * weights_L[layer]
    return mixed
