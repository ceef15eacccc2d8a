"""System metrics of a run (CPU, memory, GPU) under MLflow's own metric names, so that its UI can compare projects."""

from __future__ import annotations

import shutil
import subprocess

import psutil

MB = 1e6
_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total", "power.draw")
_PATIENCE_S = 5.0


class SystemMeter:
    """Measures CPU and memory of the host, memory of one process tree, and GPUs if `nvidia-smi` exists. Sees only its own node."""

    def __init__(self, pid: int) -> None:
        """`pid`: the training process."""
        self.pid = pid
        self._smi = shutil.which("nvidia-smi")
        psutil.cpu_percent()  # measures since the previous call, so the first call returns 0

    def sample(self) -> dict[str, float]:
        """Metric name -> value; empty once the process is gone."""
        try:
            parent = psutil.Process(self.pid)
            resident = sum(process.memory_info().rss for process in [parent, *parent.children(recursive=True)])
        except psutil.Error:  # the process ended meanwhile
            return {}
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MB,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "run_memory_usage_megabytes": resident / MB,
            **self._gpus(),
        }

    def _gpus(self) -> dict[str, float]:
        if self._smi is None:
            return {}
        command = [self._smi, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
        try:
            output = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True).stdout
            return {name: value for line in output.splitlines() for name, value in _gpu(line.split(",")).items()}
        except (OSError, subprocess.SubprocessError, ValueError):  # a driver that hangs or is gone: do not try again
            self._smi = None
            return {}


def _gpu(cells: list[str]) -> dict[str, float]:
    """The metrics of one GPU, from its line. Raises ValueError for an unexpected number of cells."""
    index, used_percent, used_mib, total_mib, watts = cells
    values = {"utilization_percentage": _number(used_percent), "power_usage_watts": _number(watts)}
    used, total = _number(used_mib), _number(total_mib)
    if used is not None and total:
        values |= {"memory_usage_megabytes": used * 2**20 / MB, "memory_usage_percentage": 100 * used / total}
    return {f"gpu_{index.strip()}_{name}": value for name, value in values.items() if value is not None}


def _number(cell: str) -> float | None:
    """A cell's value; None if the GPU does not report it (`[N/A]`)."""
    try:
        return float(cell)
    except ValueError:
        return None
