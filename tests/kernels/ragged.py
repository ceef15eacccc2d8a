"""Utterances of several lengths in one padded batch."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_rows(lengths_B: Tensor, stack: int, frames: int) -> Tensor:
    """[R]: flat positions in [B, ceil(frames / stack)] that hold frames of utterances of these lengths."""
    real_BQ = torch.arange(-(-frames // stack)) * stack < lengths_B.unsqueeze(1)
    return real_BQ.flatten().nonzero().squeeze(1)
