"""What a step costs the training process while MLflow is up, down or silent: `python -m tests.bench.mlflow_away [--rounds N]`.

Seconds of CPU of the process that trains, for on a shared machine its wall time tells of the neighbours. A step is 10 ms of hashing and one
Seconds of CPU of the process that trains, for on a shared machine wall time tells of the neighbours. A step is 10 ms of hashing and one
of one round. Prints one JSON object: CPU in ms per step and the median ratio to no sender, with the 95 % interval of the median.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from speechkd.tracking import TrackingConfig
from speechkd.tracking.journal import Journal
from speechkd.tracking.sender_process import start_sender
from tests.tracking.server import Door, Server

STATES = ("up", "down", "silent")
STEPS = 50
DATA = bytes(1_000_000)


def block(journal: Journal, first: int) -> float:
    """Seconds of CPU of one step: the mean of a block."""
    began = time.process_time()
    for step in range(first, first + STEPS):
        for _ in range(10):
            hashlib.sha256(DATA).digest()
        journal.metrics(step, {"train/loss": 1.0 / step, "train/lr": 0.5})
    return (time.process_time() - began) / STEPS


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median of the values, and the interval that holds the true one in 95 of 100 cases (order statistics)."""
    ordered, half = sorted(values), math.sqrt(len(values))
    low, high = max(0, int(len(values) / 2 - half)), min(len(values) - 1, math.ceil(len(values) / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


def measure(folder: Path, rounds: int) -> dict[str, object]:
    """Rounds of blocks with a real MLflow server, behind a door for each state."""
    server = Server(folder)
    server.start()
    server.step_aside()
    uris = {"up": server.uri, "down": Door(server.port, "refuse").uri, "silent": Door(server.port, "silent").uri}
    journals = {state: Journal(folder / state / "journal.jsonl") for state in (*STATES, "none")}
    for journal in journals.values():
        journal.status("RUNNING")
    senders = {state: start_sender(folder / state, TrackingConfig(uri=uris[state], experiment="away")) for state in STATES}
    order, seconds = [*STATES, "none"], {state: list[float]() for state in (*STATES, "none")}
    try:
        time.sleep(20)  # they import MLflow and meet what there is
        for number in range(rounds + 1):
            random.Random(number).shuffle(order)
            for state in order:
                for name, sender in senders.items():
                    assert sender is not None
                    os.kill(sender.pid, signal.SIGCONT if name == state else signal.SIGSTOP)
                took = block(journals[state], 1 + number * STEPS)
                seconds[state] += [took] if number else []  # the first round warms up
    finally:
        for sender in senders.values():
            if sender is not None:
                sender.kill()
                sender.wait()
        server.kill()
    ratios = {state: interval([mine / none for mine, none in zip(seconds[state], seconds["none"], strict=True)]) for state in STATES}
    return {
        "rounds": rounds,
        "cpu_ms_per_step": {state: round(1000 * statistics.median(values), 4) for state, values in seconds.items()},
        "ratio": {state: {"median": round(m, 4), "low": round(low, 4), "high": round(high, 4)} for state, (m, low, high) in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for state in (*STATES, "none"):
            (Path(folder) / state).mkdir()
        print(json.dumps(measure(Path(folder), given.rounds), indent=1))


if __name__ == "__main__":
    main()
