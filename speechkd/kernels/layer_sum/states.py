"""A weighted sum of layers that is not made yet: who reads few frames sums few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LayerStates(NamedTuple):
    """L states of one encoder, each [B, F, C], and what their sum depends on, as `layer_sum` takes it."""

    states_LBFC: Sequence[Tensor]
    weights_L: Tensor
    normalise: bool = False

    @property
    def shape(self) -> torch.Size:
        """[B, F, C] of the sum."""
        return self.states_LBFC[0].shape

    @property
    def device(self) -> torch.device:
        """Of the states."""
        return self.states_LBFC[0].device
