"""`make bench`: reading, raw iteration and writing beside other loaders: the same audio, in one run, interleaved, medians."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.stages.shard import shard
from speechkd.train.prefetch import in_order
from tests.bench import useful, writing
from tests.bench.clips import write_clips
from tests.bench.peers import BATCH, installed
from tests.bench.raw import members

ROUNDS, READ = 5, 1200
HERE = Path(__file__).parent


class Ours:
    """speechkd: shards by `speechkd shard`, read by number, every member's sha256 checked."""

    name, version = "speechkd", ""

    def write(self, wavs: list[Path], out: Path) -> None:
        shard(wavs[0].parents[1] / "card.yaml", out, workers=2, quiet=True)

    def read(self, folder: Path, workers: int) -> Iterator[np.ndarray]:
        reader = _reader(folder)
        spans = [range(start, min(start + BATCH, len(reader.shards))) for start in range(0, len(reader.shards), BATCH)]
        for batch in in_order(lambda rows: [_sample(reader, row) for row in rows], spans, workers, 4):
            yield from batch

    def raw(self, folder: Path, checked: bool = False) -> Iterator[memoryview]:
        shards = _reader(folder).shards
        for number in range(shards.shards):
            yield from (data for _, data in members(shards, number, checked))


def _reader(folder: Path) -> Reader:
    return Reader(open_shards(next(folder.glob("*/*/manifest.json")).parent))


def _sample(reader: Reader, row: int) -> np.ndarray:
    reader.metadata(row)
    samples_T = reader.audio(row)
    assert samples_T is not None
    return samples_T


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _drain(items: Iterator[Any], count: int) -> None:
    """Use every item, and see that all came."""
    seen = sum(1 for item in items if len(item))
    assert seen == count, f"{seen} of {count}"


def _rates(works: dict[str, Callable[[], Any]], count: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Items a second, median over rounds in which everybody has a turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(_seconds(work))
    return {name: count / median(times) for name, times in taken.items()}


def row(title: str, rates: dict[str, float], names: list[str]) -> str:
    """One line of a table: the rates in the order of `names`, and ours over the best of the others'."""
    best = max((rate for name, rate in rates.items() if not name.startswith(Ours.name)), default=float("nan"))
    cells = " | ".join(f"{rates[name]:,.0f}" if name in rates else "" for name in names)
    return f"| {title} | {cells} | {rates[Ours.name] / best:.2f} |"


def compare(folder: Path) -> str:
    """All tables, as Markdown."""
    peers, absent = installed()
    everyone = [Ours(), *peers]
    names = [one.name for one in everyone]
    lines = [*absent, "| items a second | " + " | ".join(names) + " | ours / best |", "|---" * (len(names) + 2) + "|"]

    def add(title: str, rates: dict[str, float]) -> None:
        lines.append(row(title, rates, names))
        print(lines[-1], flush=True)

    for title, rates in writing.rates(folder, everyone):
        add(title, rates)
    homes = writing.homes(folder, everyone)
    raw = {one.name: (lambda one=one: _drain(one.raw(homes[one.name]), 2 * writing.MANY)) for one in everyone if hasattr(one, "raw")}
    checked = "speechkd, checked"
    rates = _rates(raw | {checked: lambda: _drain(Ours().raw(homes[Ours.name], True), 2 * writing.MANY)}, 2 * writing.MANY)
    add("raw members of 2 s clips", {name: rates[name] for name in raw})
    add("the same, sha256 of each checked", {**rates, Ours.name: rates[checked]})
    for seconds, count in ((2.0, READ), (10.0, READ // 4)):
        wavs = write_clips(folder / f"clips{seconds:g}", count, seconds)
        homes = {one.name: folder / f"{one.name}-read{seconds:g}" for one in everyone}
        for one in everyone:
            one.write(wavs, homes[one.name])
        for workers in (0, 2):
            works = {one.name: (lambda one=one: _drain(one.read(homes[one.name], workers), count)) for one in everyone}
            if not workers:
                works[checked] = lambda: _drain(Ours().raw(homes[Ours.name], True), 2 * count)
                works["unchecked"] = lambda: _drain(Ours().raw(homes[Ours.name]), 2 * count)
            found = _rates(works, count)
            add(f"read + decode, {seconds:g} s clips, {'2 workers' if workers else 'one thread'}", {name: found[name] for name in names})
            if not workers:
                share = (1 / found[checked] - 1 / found["unchecked"]) * found[Ours.name]
                lines.append(f"| of which the digest checks | {share:.1%} |" + " |" * len(names))
                print(lines[-1], flush=True)
    return "\n".join(lines) + "\n\n" + useful.table(folder) + "\n"


def main() -> None:
    """Print the tables; with `--write`, keep them in RESULTS.md."""
    began, folder = time.time(), Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        report = compare(folder)
    finally:
        shutil.rmtree(folder)
    load = os.getloadavg()
    peers = ", ".join(f"{one.name} {one.version}" for one in installed()[0])
    head = (
        f"`make bench`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({platform.machine()}), load average at the end {load[0]:.1f}, "
        f"{time.time() - began:.0f} s; medians of {ROUNDS} interleaved rounds. {peers}."
    )
    print(head, report, sep="\n\n")
    if "--write" in sys.argv:
        (HERE / "RESULTS.md").write_text(f"# Reading, beside other loaders\n\n{head}\n\n{report}", encoding="utf-8")


if __name__ == "__main__":
    main()
