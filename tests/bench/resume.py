"""Ten million examples in one combined index: how long from nothing to the first batch, at the start and deep in epoch 5, in what memory.

`python -m tests.bench.resume [EXAMPLES [FOLDER]] [--write]` writes a corpus whose ten thousand shards are one real shard under ten
thousand names, beside indexes of full size with digests as random as real ones, and starts fresh processes that resume in it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechkd.core.files import sha256_file, write_json
from speechkd.data.column_writer import ColumnWriter
from speechkd.data.columns.spec import COLUMN_SCHEMA, ColumnSpec, Turn
from speechkd.data.plan.plan import ExampleRef, Plan, PlanConfig
from speechkd.data.reader import Example, Reader
from speechkd.data.shards.index import open_shards
from speechkd.data.storage.manifest import with_self_digest
from speechkd.stages.shard import shard
from speechkd.train.config import Phase
from speechkd.train.schedule import Schedule, Segment, feed
from tests.bench.clips import mixed_lengths, write_clips

SHARD, PIECE = 1000, 1 << 20
WORLD, RANK = 8, 3


def build(folder: Path, count: int) -> Path:
    """A version of `count` samples with a column `kd`, one example each."""
    write_clips(folder, SHARD, 0.2)
    card = folder / "card.yaml"
    card.write_text(card.read_text().replace("shard_samples: 125", f"shard_samples: {SHARD}"))
    root = shard(card, folder / "out", quiet=True)
    shards = open_shards(root)
    spec = ColumnSpec(name="kd", teacher={"backend": "bench"}, tokenizer="0" * 64, vocab_size=500)
    writer = ColumnWriter(shards, spec)
    turns = {key: [Turn("open-0", "What?", "an answer", [7, 8, 2], 20, "eos")] for key in shards.keys(0)}
    writer.write_shard(0, turns)
    column = writer.publish().root
    seconds_N, tokens_N = mixed_lengths(count)
    for home, below in ((root, "audio/"), (column, "")):
        for number in range(1, count // SHARD):
            for suffix in ("tar", "parquet"):
                os.link(home / f"{below}000000.{suffix}", home / f"{below}{number:06d}.{suffix}")
    _index(root / "index.parquet", root / "audio/000000.parquet", count, {"seconds": seconds_N})
    _index(column / "index.parquet", column / "000000.parquet", count, {"tokens": tokens_N.astype(np.int32)})
    base = _manifest(root, count, "audio/", {})
    _manifest(column, count, "", {"base": base})
    return root


def _index(path: Path, one: Path, count: int, change: dict[str, np.ndarray]) -> None:
    """The rows of `one` repeated, with other lengths and digests."""
    table = pq.read_table(one)
    table = table.select([name for name in table.column_names if not name.startswith("meta.")])
    is_column = table.schema.names == COLUMN_SCHEMA.names
    draw = np.random.default_rng(1)
    writer = None
    for start in range(0, count, PIECE):
        row_P = np.arange(start, min(start + PIECE, count))
        piece = table.take(pa.array(row_P % SHARD))
        piece = piece.add_column(1, "shard", pa.array((row_P // SHARD).astype(np.int32)))
        if is_column:
            piece = piece.add_column(2, "sample", pa.array(row_P))
        else:
            piece = piece.append_column("sha256", piece["audio_sha256"])
        for place, name in enumerate(piece.column_names):
            if name in change:
                piece = piece.set_column(place, name, pa.array(change[name][row_P]))
            elif name.endswith("sha256") and not name.startswith("signals"):
                digests = pa.py_buffer(draw.bytes(32 * len(row_P)))
                piece = piece.set_column(place, name, pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(row_P), [None, digests]))
        writer = writer or pq.ParquetWriter(path, piece.schema, compression="zstd")
        writer.write_table(piece, row_group_size=PIECE)
    assert writer is not None
    writer.close()


def _manifest(home: Path, count: int, below: str, change: dict[str, str]) -> str:
    manifest = json.loads((home / "manifest.json").read_text())
    del manifest["sha256"]
    shards = count // SHARD
    for suffix in ("tar", "parquet"):
        entry = manifest["files"][f"{below}000000.{suffix}"]
        manifest["files"] |= {f"{below}{number:06d}.{suffix}": entry for number in range(shards)}
    index = home / "index.parquet"
    manifest["files"]["index.parquet"] = {"sha256": sha256_file(index), "bytes": index.stat().st_size}
    manifest["shards"] = [manifest["shards"][0] | {"shard": number} for number in range(shards)]
    manifest["totals"] = {name: value * shards for name, value in manifest["totals"].items()}
    done = with_self_digest(manifest | change)
    write_json(home / "manifest.json", done)
    return str(done["sha256"])


def resume(root: Path, place: float) -> None:
    """In a fresh process: what a rank does from nothing to its first batch, `place` epochs into training."""
    began = time.perf_counter()
    stages = {}

    def stage(name: str) -> None:
        stages[name] = round(time.perf_counter() - began - sum(stages.values()), 3)

    shards = open_shards(root)
    reader = Reader(shards, shards.column("kd"))
    source = reader.source("kd", "train", stops=("eos",))
    stage("index")
    config = PlanConfig(micro_batches=64, max_examples=64, max_seconds=160, max_tokens=4096)
    plan = Plan(config, [source], 1)
    stage("plan")
    step = int(place * plan.steps_per_epoch(0))
    schedule = Schedule([Segment(Phase(name="only", steps=step + 100, mix={}), plan, [0])])

    def load(refs: Sequence[ExampleRef]) -> list[Example]:
        return [reader.read(ref.row) for ref in refs]

    fed = feed(schedule, load, RANK, WORLD, step, 2, 2)  # type: ignore[arg-type]
    first = next(fed)
    stage("first batch")
    examples = sum(len(batch) for batch in first.batches)  # type: ignore[arg-type]
    for _ in range(20):
        next(fed)
    stage("20 more steps")
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({**stages, "step": step, "examples": examples, "peak_MiB": peak // 1024}))


def table(count: int, keep: Path | None = None) -> str:
    """Markdown: medians of three fresh processes at each place."""
    folder = keep or Path(tempfile.mkdtemp(prefix="resume-"))
    try:
        began = time.perf_counter()
        found = list(folder.glob("out/*/*/manifest.json"))
        root = found[0].parent if found else build(folder, count)
        sizes = [path.stat().st_size / 2**20 for path in (root / "index.parquet", root / "columns/kd/index.parquet")]
        print(
            f"corpus of {count:,} examples in {time.perf_counter() - began:.0f} s; indexes {sizes[0]:.0f} and {sizes[1]:.0f} MiB",
            flush=True,
        )
        lines = [
            f"| {count:,} examples, resumed at | index, s | plan, s | first batch, s | in all, s | peak memory, MiB |",
            "|---|---|---|---|---|---|",
        ]
        for place in (0.0, 0.5, 4.7):
            runs = []
            for _ in range(3):
                words = [sys.executable, "-m", "tests.bench.resume", "--root", str(root), str(place)]
                runs.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
            middle = {name: median(run[name] for run in runs) for name in runs[0]}
            total = median(run["index"] + run["plan"] + run["first batch"] for run in runs)
            lines.append(
                f"| epoch {int(place) + 1}, step {middle['step']:.0f} | {middle['index']:.2f} | {middle['plan']:.2f} "
                f"| {middle['first batch']:.2f} | {total:.2f} | {middle['peak_MiB']:.0f} |"
            )
        return "\n".join(lines) + "\n"
    finally:
        if keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--root"]:
        resume(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        given = [word for word in sys.argv[1:] if word != "--write"]
        report = table(int(given[0]) if given else 10_000_000, Path(given[1]) if given[1:] else None)
        head = (
            f"`python -m tests.bench.resume`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({platform.machine()}), load average "
            f"{os.getloadavg()[0]:.1f}; medians of three fresh processes, from opened interpreter and imported packages (290 MiB) on."
        )
        print(head, report, sep="\n\n")
        if "--write" in sys.argv:
            (Path(__file__).parent / "RESUME.md").write_text(f"# Resuming in a large plan\n\n{head}\n\n{report}", encoding="utf-8")
