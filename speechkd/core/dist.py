"""Wrappers of torch.distributed that also work in a single process without a group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist


def _live() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """Rank of this process, 0 outside a group."""
    return torch_dist.get_rank() if _live() else 0


def world_size() -> int:
    """Number of ranks, 1 outside a group."""
    return torch_dist.get_world_size() if _live() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if _live():
        torch_dist.barrier()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over ranks, in place, and return it."""
    if _live():
        torch_dist.all_reduce(tensor)
    return tensor


def gather_to_rank_zero(tensor: torch.Tensor, parts: list[torch.Tensor] | None) -> None:
    """Copy every rank's `tensor` into rank 0's `parts`, one of the same size for each rank; other ranks give None."""
    if _live() and world_size() > 1:
        torch_dist.gather(tensor, parts, 0)
    elif parts is not None:
        parts[0].copy_(tensor, non_blocking=True)


class ToHost:
    """An asynchronous copy of numbers to the host. `read` waits only for this copy, not for work queued after it."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=numbers.is_cuda)
        self._host.copy_(numbers, non_blocking=True)
        self._done = torch.cuda.Event() if numbers.is_cuda else None
        if self._done is not None:
            self._done.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._done is not None:
            self._done.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers


def from_rank_zero(value: Any) -> Any:
    """A small JSON-like value of rank 0, on every rank (encoded as UTF-8 JSON, never pickled)."""
    if not _live():
        return value
    import json

    data = torch.tensor(list(json.dumps(value).encode()) if rank() == 0 else [], dtype=torch.uint8)
    length = torch.tensor([data.numel()])
    torch_dist.broadcast(length, 0)
    if rank() != 0:
        data = torch.empty(int(length), dtype=torch.uint8)
    torch_dist.broadcast(data, 0)
    return json.loads(bytes(data.tolist()).decode())
