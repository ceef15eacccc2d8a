"""Which updates to drop because loss or gradient norm is far above those of the steps before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Any

from speechkd.train.config import SpikeConfig


class SpikeGuard:
    """Keeps loss and gradient norm of the last steps, the dropped ones included, so that a level that has changed for good is accepted.

    All ranks give it the same reduced values and so decide alike. Its state is JSON and goes into checkpoints.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self.dropped = 0

    def drops(self, loss: float, norm: float) -> bool:
        """Whether to drop the update with this loss and gradient norm. Values that are not finite are left to the engine."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        spike = self._above(loss, self._losses) or self._above(norm, self._norms)
        self._losses.append(loss)
        self._norms.append(norm)
        self.dropped += spike
        return spike

    def _above(self, value: float, before: deque[float]) -> bool:
        if len(before) < self._config.window // 2:
            return False
        mean = fmean(before)
        return value > mean + self._config.sigmas * pstdev(before, mean)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"losses": list(self._losses), "norms": list(self._norms), "dropped": self.dropped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
        self.dropped = int(state["dropped"])
