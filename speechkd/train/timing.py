"""How long steps take, on which rank the others wait, how long the run will take, and how well the GPUs are used.

Busy is what a rank does itself: its wait for data, and its own computing. On CPUs that is the time the training thread spends on a core; on
GPUs, where gathers run inside the computation, it is estimated from a fixed product that every GPU computes once an interval: one that
takes twice as long there has taken twice as long in the step.
"""

from __future__ import annotations

import math
import time
from statistics import median

import torch
from torch import Tensor

from speechkd.core import dist
from speechkd.models.flops import peak_flops
from speechkd.tracking.metrics import Meter

RANKS_SHOWN = 64
BY_RANK = ("steps", "seconds", "waited", "own", "pace", "gpu_bytes")
PACE_SIDE, PACE_PRODUCTS = 4096, 4


class StepTimes:
    """Times of this rank's steps, in the meter's one all-reduce of an interval; nothing waits for the device."""

    def __init__(self, meter: Meter, device: torch.device, peak_tflops: float | None) -> None:
        self._meter, self._device = meter, device
        self.on_gpu = device.type == "cuda"
        known = peak_flops(torch.cuda.get_device_name(device)) if self.on_gpu else None
        self.peak = peak_tflops * 1e12 if peak_tflops else known
        """FLOP/s of one device; None where it is not known"""
        self._pace = _Pace(device) if self.on_gpu else None
        self._interval = time.perf_counter()
        self._began = self._cpu = 0.0

    def begin(self, waited: float) -> None:
        """A step begins on this rank, after so many seconds of waiting for its data."""
        self._began, self._cpu = time.perf_counter(), time.thread_time()
        self._meter.add_own("steps", 1)
        self._meter.add_own("waited", waited)
        self._meter.add_own("own", waited)

    def arrive(self) -> None:
        """The rank is about to wait for the others for the first time in this step."""
        if self.on_gpu:
            self._meter.add_own("own", time.perf_counter() - self._began)

    def end(self) -> None:
        """The step ends on this rank."""
        if not self.on_gpu:
            self._meter.add_own("own", time.thread_time() - self._cpu)

    def before_drain(self) -> None:
        """Close the interval: what follows belongs to the next one."""
        now = time.perf_counter()
        self._meter.add_own("seconds", now - self._interval)
        self._interval = now
        if self._pace is not None:
            self._meter.add_own("pace", self._pace.last_seconds())
            self._meter.add_own("gpu_bytes", float(torch.cuda.max_memory_allocated(self._device)))
            torch.cuda.reset_peak_memory_stats(self._device)

    def values(self, flops_per_s: float | None, steps_left: int) -> dict[str, float]:
        """Metrics of the interval that the meter has just drained, the same on all ranks."""
        rows = self._meter.by_rank
        steps = max(1.0, rows["steps"][0])
        seconds = [value / steps for value in rows["seconds"]]
        values = {"train/step_seconds": sum(seconds) / len(seconds)}
        values["train/eta_seconds"] = steps_left * values["train/step_seconds"]
        busy = self._busy([value / steps for value in rows["own"]], seconds, rows["pace"])
        values["train/straggler_ratio"] = max(busy) / max(median(busy), 1e-9)
        values["train/slowest_rank"] = float(busy.index(max(busy)))
        if 1 < len(seconds) <= RANKS_SHOWN:
            for rank, (took, waited, own) in enumerate(zip(seconds, rows["waited"], rows["seconds"], strict=True)):
                values[f"rank/{rank}/step_seconds"] = took
                values[f"rank/{rank}/data_wait_ratio"] = waited / max(own, 1e-9)
        if self.on_gpu:
            values["train/gpu_memory_peak_gib"] = max(rows["gpu_bytes"]) / 2**30
        if self.peak and flops_per_s is not None:
            values["train/mfu"] = flops_per_s / (self.peak * dist.world_size())
        return values

    def _busy(self, own: list[float], seconds: list[float], pace: list[float]) -> list[float]:
        """Seconds a step of each rank's own work."""
        if not all(pace):
            return own
        usual, computing = median(pace), max(0.0, median(seconds) - median(own))
        return [mine + computing * took / usual for mine, took in zip(own, pace, strict=True)]


class _Pace:
    """How long a fixed matrix product takes on this GPU, queued behind the interval's work and read one interval later."""

    def __init__(self, device: torch.device) -> None:
        self._matrix_NN: Tensor = torch.full((PACE_SIDE, PACE_SIDE), 0.01, dtype=torch.bfloat16, device=device)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._queued = False

    def last_seconds(self) -> float:
        """Seconds that the product queued before took, 0.0 for the first call; queues the next one."""
        took = self._events[0].elapsed_time(self._events[1]) / 1000 if self._queued else 0.0
        self._queued = True
        self._matrix_NN @ self._matrix_NN  # what is timed must not include a wait for the clock to rise
        self._events[0].record()
        for _ in range(PACE_PRODUCTS):
            self._matrix_NN @ self._matrix_NN
        self._events[1].record()
        return took if math.isfinite(took) else 0.0
