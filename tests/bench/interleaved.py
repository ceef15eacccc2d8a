"""Candidates timed in turn in one process, so that a busy machine is busy for all of them; medians, and a table of them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch

ROUNDS = 7


class Row(NamedTuple):
    """One comparison: how long this project's form takes and how long a peer's."""

    op: str
    case: str
    peer: str
    ours_ms: float
    peer_ms: float

    @property
    def ratio(self) -> float:
        """How many times as fast as the peer."""
        return self.peer_ms / self.ours_ms


def compare(op: str, case: str, ours: str, candidates: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> list[Row]:
    """A row for each candidate but `ours`; each round runs all of them once, the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for counted in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if counted:
                times[name].append(1e3 * (time.perf_counter() - start))
    own = median(times[ours])
    return [Row(op, case, name, own, median(found)) for name, found in times.items() if name != ours]


def bf16_products() -> bool:
    """Whether this CPU multiplies bfloat16 matrices; one that does not takes minutes for them (0.5 GFLOP/s with AVX2)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def machine() -> str:
    """Where and when: processor, threads, torch, load, date."""
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {load}, {time.strftime('%Y-%m-%d %H:%M')} UTC"


def markdown(rows: Sequence[Row]) -> str:
    """One table an op."""
    lines = [machine()]
    for op in dict.fromkeys(row.op for row in rows):
        lines += ["", f"## {op}", "", "| case | peer | ours, ms | peer, ms | peer ÷ ours |", "|---|---|---|---|---|"]
        for row in rows:
            if row.op == op:
                lines.append(f"| {row.case} | {row.peer} | {row.ours_ms:.1f} | {row.peer_ms:.1f} | {row.ratio:.2f} |")
    return "\n".join(lines)


def report(rows: Sequence[Row]) -> None:
    """Print a table, or JSON with `--json`."""
    if "--json" in sys.argv:
        print(json.dumps({"machine": machine(), "rows": [{**row._asdict(), "ratio": row.ratio} for row in rows]}, indent=1))
    else:
        print(markdown(rows))


def asked(cases: Mapping[str, Callable[[], list[Row]]]) -> list[Row]:
    """Rows of the cases that the command line names, or of all."""
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or list(cases)
    unknown = [name for name in names if name not in cases]
    if unknown:
        raise SystemExit(f"bench: no case `{unknown[0]}`; there are {', '.join(cases)}")
    return [row for name in names for row in cases[name]()]


def peak_mib(module: str, name: str) -> float:
    """MiB that `python -m module --peak name` adds to a fresh process at its peak; that command prints `peak_of_this(...)`."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # what is freed leaves the process
    command = [sys.executable, "-m", module, "--peak", name]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def peak_of_this(run: Callable[[], object]) -> float:
    """MiB that `run` adds to this process at its peak."""
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # forgets the peak so far
    run()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))
