"""Metrics without a host sync per step: sums stay on the device and reach the host once per interval, by one all-reduce."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from speechkd.core import dist

Kind = Literal["mean", "total", "rate"]


class Meter:
    """Accumulates declared metrics between two calls of `drain`.

    kinds: "mean" is sum of totals / sum of counts over ranks and steps; "total" is the plain sum; "rate" is the sum over ranks per second.
    Names are declared up front because every rank must bring the same vector to the all-reduce, whatever its batch contained.
    """

    def __init__(self, kinds: Mapping[str, Kind], device: torch.device | str = "cpu", by_rank: Sequence[str] = ()) -> None:
        """`by_rank`: numbers of the host that are kept apart by rank."""
        self._kinds = dict(kinds)
        self._own_sums = dict.fromkeys(by_rank, 0.0)
        self.by_rank: dict[str, list[float]] = {}
        """after `drain`: what each rank brought under each of these names; the same on all ranks"""
        self._row = {name: row for row, name in enumerate(self._kinds)}
        self._device = torch.device(device)
        self._reset()

    def _reset(self) -> None:
        # the last row carries (elapsed seconds, ranks), so that rates come out equal on all ranks
        self._sums = torch.zeros(len(self._row) + 1, 2, dtype=torch.float64, device=self._device)
        self._host = [[0.0, 0.0] for _ in range(len(self._row) + 1)]
        self._began = time.perf_counter()

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Add to a declared metric. Device scalars stay on the device; numbers stay on the host. `count` matters for means only."""
        row = self._row[name]
        for column, value in ((0, total), (1, count)):
            if isinstance(value, Tensor):
                self._sums[row, column] += value.detach()
            else:
                self._host[row][column] += value

    def add_own(self, name: str, value: float) -> None:
        """Add to one of the numbers that are kept apart by rank."""
        self._own_sums[name] += value

    def drain(self) -> dict[str, float]:
        """Return the values since the last drain, equal on all ranks, and reset. Collective: every rank must call it at the same step.

        A mean with count 0 on all ranks is left out, not reported as 0 or NaN.
        """
        self._host[-1] = [time.perf_counter() - self._began, 1.0]
        sums = self._sums + torch.tensor(self._host, dtype=torch.float64).to(self._device, non_blocking=True)
        apart = torch.zeros(dist.world_size(), len(self._own_sums), dtype=torch.float64)
        apart[dist.rank()] = torch.tensor([*self._own_sums.values()])
        flat = dist.sum_over_ranks(torch.cat([sums.flatten(), apart.flatten().to(self._device, non_blocking=True)]))
        host = flat.cpu()  # the one transfer of the interval
        *rows, (seconds, ranks) = host[: sums.numel()].view(-1, 2).tolist()
        columns = host[sums.numel() :].view(dist.world_size(), -1).t().tolist() if self._own_sums else []
        self.by_rank = dict(zip(self._own_sums, columns, strict=True))
        self._own_sums = dict.fromkeys(self._own_sums, 0.0)
        self._reset()
        values: dict[str, float] = {}
        for (name, kind), (total, count) in zip(self._kinds.items(), rows, strict=True):
            if kind == "mean":
                if count:
                    values[name] = total / count
            else:
                values[name] = total if kind == "total" else total * ranks / seconds
        return values
