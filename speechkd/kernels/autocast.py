"""Where a closed-form backward must step aside for autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_on(x: Tensor) -> bool:
    """Whether autocast changes dtypes on `x`'s device. It does so inside forward but not inside backward: a closed form would mix them."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
