"""Samples a node's CPU, memory and GPUs into `RUN/system/<node>.jsonl`; the sender on the first node forwards the files of all nodes.

`start_sampler(run_dir)` runs it beside the training processes of every node but the first, where the sender samples. The file is the node's
sign of life, too: it is touched every `EVERY_S` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from speechkd.tracking.journal import now_ms, process_start_time, records_from
from speechkd.tracking.system import SystemMeter

SAMPLES = "system"
FIRST_SAMPLE_S, EVERY_S = 2.0, 15.0
PART_BYTES, FULL_BYTES = 4 << 20, 32 << 20
"""Samples become rarer with each full part, and stop when the file is full: after months"""
NODE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}")


class NodeSamples:
    """Writes the samples of one node. A failing disk costs samples, never an exception."""

    def __init__(self, run_dir: Path, node: str, pid: int) -> None:
        """`pid`: the process whose memory counts as the run's."""
        self.path = run_dir / SAMPLES / f"{node_label(node)}.jsonl"
        self._meter = SystemMeter(pid)
        self._number: int | None = None
        self._due = time.monotonic() + FIRST_SAMPLE_S
        self._written = float("-inf")

    def tick(self) -> None:
        """Sample, if it is time."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + EVERY_S
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            size = self.path.stat().st_size
            if size < FULL_BYTES and now - self._written >= EVERY_S * (size // PART_BYTES) ** 2 and (values := self._meter.sample()):
                self._written = now
                self._append(values)

    def _append(self, values: dict[str, float]) -> None:
        if self._number is None:  # a resumed run continues the series
            self._number = sum(1 for _ in records_from(self.path, 0))
        self._number += 1
        record = {"kind": "metric", "step": self._number, "time_ms": now_ms()}
        record["values"] = {name: float(f"{value:.5g}") for name, value in values.items()}
        with self.path.open("ab") as stream:  # an empty line ends what a kill tore
            stream.write(b"\n" + json.dumps(record, separators=(",", ":")).encode() + b"\n")


def node_name() -> str:
    """This node's name: SLURM's where there is one, for a host may stand for several nodes."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def node_label(name: str) -> str:
    """The node's name as file name and metric label."""
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:63].lstrip(".")
    return clean if NODE.fullmatch(clean) else "node"


def sample_files(run_dir: Path) -> Iterator[tuple[str, Path]]:
    """(node, file) of all nodes that have samples."""
    for path in sorted((run_dir / SAMPLES).glob("*.jsonl")):
        if NODE.fullmatch(path.stem) and path.is_file():
            yield path.stem, path


def start_sampler(run_dir: Path, node: str | None = None) -> subprocess.Popen[bytes]:
    """Start sampling this node in the background, at low priority, until the calling process is gone."""
    options = ["--node", node or node_name(), "--parent", str(os.getpid())]
    command = [sys.executable, "-m", "speechkd.tracking.sampler", str(run_dir), *options]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def main() -> None:
    """Entry point of the sampling process."""
    parser = argparse.ArgumentParser(prog="python -m speechkd.tracking.sampler", description="sample this node's CPU, memory and GPUs")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--node", default=node_name(), help="its name in metrics")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process id of the training")
    args = parser.parse_args()
    os.nice(19)
    started = process_start_time(args.parent)
    samples = NodeSamples(args.run_dir, args.node, args.parent)
    while started is not None and process_start_time(args.parent) == started:
        samples.tick()
        time.sleep(0.5)


if __name__ == "__main__":
    main()
