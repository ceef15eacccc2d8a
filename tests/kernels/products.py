"""Counts the operations of matrix products as they run: what a closed form saves is then an equation."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)


class Products(TorchDispatchMode):
    """Inside it, `flops` counts two operations for each multiplication of a matrix product."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            self.flops += 2 * out.numel() * args[-1].shape[-2]
        return out
