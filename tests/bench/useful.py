"""Useful frames: how much of what a micro-batch's padded audio holds is audio, on one mixed-length set and one budget."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from speechkd.data.plan.plan import Plan, PlanConfig, PlanSource
from tests.bench.clips import mixed_lengths

COUNT, SHARD = 20_000, 1000
BUDGET, LONGEST = 160.0, 30.0
"""Seconds of a micro-batch with its padding; a loader without buckets must take as many clips as fit when all are the longest"""
FIXED = int(BUDGET // LONGEST)


def _shares(batches: Iterable[list[int]], seconds_N: np.ndarray) -> tuple[float, float]:
    """(useful share, mean clips of a batch); every clip must come once, but for a remainder that a loader drops."""
    real = padded = seen = count = 0.0
    for batch in batches:
        lengths = seconds_N[batch]
        real, padded, seen, count = real + lengths.sum(), padded + len(batch) * lengths.max(), seen + len(batch), count + 1
    assert seen > 0.98 * len(seconds_N), f"{seen} of {len(seconds_N)} clips"
    return real / padded, seen / count


def _ours(seconds_N: np.ndarray, tokens_N: np.ndarray, folder: Path) -> Iterator[list[int]]:
    config = PlanConfig(micro_batches=16, max_examples=64, max_seconds=BUDGET, max_tokens=4096)
    plan = Plan(config, [PlanSource("kd", "bench", np.arange(len(seconds_N)) // SHARD, seconds_N, tokens_N)], 1)
    steps = map(plan.step, range(plan.steps_per_epoch(0)))
    return ([ref.row for ref in batch] for step in steps for batch in step if batch)


def _lhotse(seconds_N: np.ndarray, tokens_N: np.ndarray, folder: Path) -> Iterator[list[int]]:
    from lhotse import CutSet, MonoCut, Recording
    from lhotse.dataset import DynamicBucketingSampler

    def cuts() -> Iterator[MonoCut]:
        for i, seconds in enumerate(seconds_N.tolist()):
            recording = Recording(id=str(i), sources=[], sampling_rate=16_000, num_samples=round(seconds * 16_000), duration=seconds)
            yield MonoCut(id=str(i), start=0, duration=seconds, channel=0, recording=recording)

    sampler = DynamicBucketingSampler(
        CutSet.from_cuts(cuts()), max_duration=BUDGET, max_cuts=64, num_buckets=30, shuffle=True, buffer_size=10_000, seed=1
    )
    return ([int(cut.id) for cut in batch] for batch in sampler)


def _tars(seconds_N: np.ndarray, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    for start in range(0, len(seconds_N), SHARD):
        with tarfile.open(folder / f"{start // SHARD:06d}.tar", "w") as tar:
            for i in range(start, min(start + SHARD, len(seconds_N))):
                data = json.dumps({"row": i}).encode()
                header = tarfile.TarInfo(f"{i}.json")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def _webdataset(seconds_N: np.ndarray, tokens_N: np.ndarray, folder: Path) -> Iterator[list[int]]:
    import webdataset

    urls = _tars(seconds_N, folder / "rows")
    pipeline = webdataset.WebDataset(urls, shardshuffle=100, seed=1).shuffle(1000).map(lambda sample: json.loads(sample["json"])["row"])
    return iter(pipeline.batched(FIXED, collation_fn=list, partial=True))


def _streaming(seconds_N: np.ndarray, tokens_N: np.ndarray, folder: Path) -> Iterator[list[int]]:
    from tests.bench.peers import Streaming

    Streaming()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder / "mds"), columns={"row": "int"}, compression=None, hashes=[], size_limit=1 << 20) as writer:
        for i in range(len(seconds_N)):
            writer.write({"row": i})
    rows = [sample["row"] for sample in StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=FIXED)]
    return (rows[start : start + FIXED] for start in range(0, len(rows), FIXED))


def table(folder: Path) -> str:
    """Markdown."""
    seconds_N, tokens_N = mixed_lengths(COUNT)
    ways: list[tuple[str, Callable[[np.ndarray, np.ndarray, Path], Iterator[list[int]]]]] = [
        ("speechkd, 2-D buckets", _ours),
        ("lhotse DynamicBucketingSampler, 30 buckets", _lhotse),
        (f"webdataset, shuffled, {FIXED} a batch", _webdataset),
        (f"MosaicML streaming, shuffled, {FIXED} a batch", _streaming),
    ]
    lines = [
        f"Useful frames on {COUNT:,} clips of {seconds_N.min():g} to {seconds_N.max():g} s (mean {seconds_N.mean():.1f} s), in batches of",
        f"at most {BUDGET:g} s with padding. Megatron-Energon leaves batching by length to the user's code; without, it is as webdataset.",
        "",
        "| | useful frames | clips in a micro-batch |",
        "|---|---|---|",
    ]
    for name, way in ways:
        try:
            share, mean = _shares(way(seconds_N, tokens_N, folder), seconds_N)
            lines.append(f"| {name} | {share:.1%} | {mean:.1f} |")
        except ImportError as error:
            lines.append(f"| {name} | not installed ({error}) | |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        table(Path(name))
