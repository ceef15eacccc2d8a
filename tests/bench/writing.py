"""Writing shards beside other loaders: each a program of its own, as a user starts it, on the same WAV files and two cores.

`python -m tests.bench.writing` measures the rows of writing alone; `python -m tests.bench.writing NAME FOLDER OUT` is one loader's program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.clips import write_clips
from tests.bench.peers import PEERS, installed

MANY, FEW, TURNS = 3200, 400, 3
OURS = "speechkd"


def program(name: str, clips: Path, out: Path) -> list[str]:
    """The command that writes `clips` below `out`; ours is the one that users type."""
    if name == OURS:
        return [sys.executable, "-m", "speechkd", "shard", str(clips / "card.yaml"), "--out", str(out)]
    return [sys.executable, "-W", "ignore", "-m", "tests.bench.writing", name, str(clips), str(out)]


def timed(words: Sequence[str]) -> tuple[float, float]:
    """(seconds, CPU seconds of all its processes) of a program."""
    began = time.perf_counter()
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    errors = child.stderr.read().decode()
    _, status, spent = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)}: {errors[-2000:]}")
    return time.perf_counter() - began, spent.ru_utime + spent.ru_stime


def rates(folder: Path, everyone: Sequence[Any]) -> list[tuple[str, dict[str, float]]]:
    """Rows of clips a second by loader, medians of interleaved turns; the first turn's shards stay (`homes`)."""
    clips = {count: write_clips(folder / f"clips-{count}", count, 2.0)[0].parents[1] for count in (MANY, FEW)}
    spent: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for turn in range(TURNS):
        for one in everyone:
            for count in (MANY, FEW):
                out = folder / f"{one.name}-{turn}-{count}"
                spent.setdefault((one.name, count), []).append(timed(program(one.name, clips[count], out)))
                if turn or count == FEW:
                    shutil.rmtree(out)

    def middle(name: str, count: int, what: int) -> float:
        return median(pair[what] for pair in spent[name, count])

    names = [one.name for one in everyone]
    more = MANY - FEW
    return [
        (f"write {MANY:,} clips of 2 s, 2 cores: a program, from its start", {name: MANY / middle(name, MANY, 0) for name in names}),
        (f"the same, less the time of {FEW} clips (start-up apart)", {n: more / (middle(n, MANY, 0) - middle(n, FEW, 0)) for n in names}),
        ("clips a CPU second, start-up apart", {n: more / (middle(n, MANY, 1) - middle(n, FEW, 1)) for n in names}),
    ]


def homes(folder: Path, everyone: Sequence[Any]) -> dict[str, Path]:
    """Where the written shards of MANY clips lie, by loader."""
    return {one.name: folder / f"{one.name}-0-{MANY}" for one in everyone}


def main() -> None:
    """One loader's program, or all rows of writing."""
    if len(sys.argv) == 4:
        clips, out = Path(sys.argv[2]), Path(sys.argv[3])
        kind = next(kind for kind in PEERS if kind.name == sys.argv[1])
        kind().write(sorted((clips / "wav").glob("*.wav")), out)
        return
    from tests.bench.reading import Ours, row

    folder, everyone = Path(tempfile.mkdtemp(prefix="bench-")), [Ours(), *installed()[0]]
    names = [one.name for one in everyone]
    print("| clips a second | " + " | ".join(names) + " | ours / best |")
    try:
        for title, found in rates(folder, everyone):
            print(row(title, found, names), flush=True)
    finally:
        shutil.rmtree(folder)
    print("load averages at the end:", *(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
