"""Times candidates side by side on one device: interleaved rounds, medians, peak memory, and the machine's ceilings in the same process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Candidate = Callable[[], object]


@dataclass
class Row:
    """One candidate of one table; None: not measured, and `note` says why."""

    name: str
    ms: float | None = None
    peak_mib: float | None = None
    note: str = ""


@dataclass
class Timer:
    """A device, how many rounds, and until when (time.monotonic) new rounds may begin."""

    device: torch.device
    rounds: int
    until: float

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, run: Candidate) -> float:
        """Milliseconds of one call, by the device's own clock."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e3
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        self.wait()
        return first.elapsed_time(last)

    def peak(self, run: Candidate) -> float | None:
        """MiB above what was allocated before; None where the allocator does not count."""
        if self.device.type != "cuda":
            return None
        self.wait()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.wait()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def table(self, candidates: Mapping[str, Candidate]) -> list[Row]:
        """All candidates, one after the other in every round; one that cannot run leaves its reason."""
        rows, able = {name: Row(name) for name in candidates}, dict(candidates)
        for name, run in candidates.items():
            try:
                run()  # compiles, and warms caches
                rows[name].peak_mib = self.peak(run)
            except (ImportError, AttributeError, RuntimeError, TypeError, ValueError) as error:  # a peer's API, or its memory
                rows[name].note = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}" if str(error) else type(error).__name__
                del able[name]
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        times: dict[str, list[float]] = {name: [] for name in able}
        for done in range(self.rounds):
            if done >= 3 and time.monotonic() > self.until:
                break
            for name, run in able.items():
                times[name].append(self.once(run))
        for name, values in times.items():
            rows[name].ms = statistics.median(values)
            rows[name].note = f"{len(values)} rounds"
        return list(rows.values())


def ceilings(timer: Timer, size: int) -> dict[str, float]:
    """bf16 matrix product (TFLOP/s) and copy (TB/s, read and written): what the machine gives in this very process."""
    a, b = (torch.randn(size, size, device=timer.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(8 * size * size, device=timer.device, dtype=torch.bfloat16).zero_()
    target = torch.empty_like(source)
    rows = timer.table({"product": lambda: a @ b, "copy": lambda: target.copy_(source)})
    product, copy = (row.ms for row in rows)
    assert product is not None and copy is not None
    return {"product_tflops": 2 * size**3 / product / 1e9, "copy_tbs": 2 * source.numel() * 2 / copy / 1e9}
