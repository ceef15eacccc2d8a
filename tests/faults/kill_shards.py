"""`speechkd shard` under SIGKILL, many times a second: one process imports the libraries, then forks every attempt.

Run by tests/faults/test_kills.py as a program of its own. The workers' server, too, is forked instead of started anew; it runs the real
`serve`, and every process, file and pipe is as in a real run. A point is a moment in time, or the n-th write, rename or removal of any of
the attempt's processes; the process at that point dies, or the stage itself.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import speechkd.data.shards.writer  # noqa: F401  (loaded here so that attempts find it loaded)
from speechkd.stages.shard import shard
from tests.faults.forked import ALIVE, fork_servers

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate"}


@dataclass(frozen=True, slots=True)
class Point:
    """When and whom to kill; neither: let it finish."""

    after_s: float | None = None
    event: int | None = None
    stage: bool = True
    """False: the process that meets the event dies, often a worker"""


def start(card: Path, out: Path, point: Point, partition: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Fork an attempt; its pid and the descriptor that tells when all its processes have ended."""
    counter = mmap.mmap(-1, 8)
    ALIVE[:] = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ALIVE[1])
        if point.after_s is not None:
            time.sleep(point.after_s)
            os.kill(pid, signal.SIGKILL)
        return pid, ALIVE[0]
    try:
        os.close(ALIVE[0])
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        fork_servers()
        if point.event is not None:
            arm(point, counter)
        shard(card, out, partition=partition, workers=2, quiet=True)
    except BaseException:
        os._exit(1)
    os._exit(0)


def arm(point: Point, counter: mmap.mmap) -> None:
    """Count events in this process and all it forks; kill at the chosen one."""
    stage = os.getpid()

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if name != "open" and name not in EVENTS:
            return
        seen = int.from_bytes(counter[:8], "little") + 1
        counter[:8] = seen.to_bytes(8, "little")
        if seen == point.event:
            os.kill(stage if point.stage else os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def finish(attempt: tuple[int, int]) -> int:
    """Wait until every process of an attempt has ended; the stage's exit code."""
    code = os.waitstatus_to_exitcode(os.waitpid(attempt[0], 0)[1])
    os.read(attempt[1], 1)
    os.close(attempt[1])
    return code


def visible(root: Path) -> dict[str, str]:
    """Digest of every file that a reader may see."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in files}


def kill_loop(card: Path, out: Path, points: int, seed: int) -> dict[str, int]:
    """Kill `points` attempts, each continuing what the one before left; check everything visible after each."""
    began = time.monotonic()
    assert finish(start(card, out / "whole", Point())) == 0
    seconds = time.monotonic() - began
    whole = visible(out / "whole")
    draw = random.Random(seed)
    kills = runs = 0
    while kills < points:
        run_folder, runs = out / f"run{runs}", runs + 1
        while True:
            if kills >= points:
                point = Point()
            elif draw.random() < 0.5:
                point = Point(after_s=draw.uniform(0, 1.2 * seconds))
            else:
                point = Point(event=draw.randrange(1, 60), stage=draw.random() < 0.5)
            code = finish(start(card, run_folder, point))
            seen = visible(run_folder)
            wrong = {name for name in seen if seen[name] != whole.get(name)}
            assert not wrong, f"after kill {kills} ({point}): {sorted(wrong)} differ from the uninterrupted run's"
            if "tones/v1/manifest.json" in seen:
                assert seen == whole, f"published without {sorted(set(whole) - set(seen))}"
            kills += code != 0
            if code == 0:
                assert seen == whole, f"done without {sorted(set(whole) - set(seen))}"
                break
    return {"kills": kills, "runs": runs, "ms_of_a_run": round(1000 * seconds)}


def partitions(card: Path, out: Path) -> dict[str, int]:
    """1, 3 and 7 partitions at once, and two writers on one: the same bytes."""
    assert finish(start(card, out / "whole", Point())) == 0
    whole = visible(out / "whole")
    for parts in (3, 7):
        attempts = [start(card, out / f"parts{parts}", Point(), (part, parts)) for part in range(parts)]
        assert [finish(attempt) for attempt in attempts] == [0] * parts
        assert visible(out / f"parts{parts}") == whole, f"{parts} partitions"
    for number in range(3):
        attempts = [start(card, out / f"two{number}", Point()) for _ in range(2)]
        assert [finish(attempt) for attempt in attempts] == [0, 0], "two writers"
        assert visible(out / f"two{number}") == whole, "two writers"
    return {"files": len(whole)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["kills", "partitions"])
    parser.add_argument("card", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pa.array([0])
    result = kill_loop(given.card, given.out, given.points, given.seed) if given.what == "kills" else partitions(given.card, given.out)
    print(json.dumps(result))
