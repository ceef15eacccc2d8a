"""One rank that reads real shards and says, after each step, what was in it.

python -m tests.data.reading_rank RANK ROOT WORLD START STEPS WORKERS
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

from speechkd.data.plan.plan import ExampleRef, Plan, PlanConfig
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.train.config import Phase
from speechkd.train.schedule import Schedule, Segment, feed


def main() -> None:
    root, (rank, world, start, steps, workers) = sys.argv[2], (int(sys.argv[i]) for i in (1, 3, 4, 5, 6))
    shards = open_shards(root)
    reader = Reader(shards, shards.column("echo"))
    sources = [reader.source("kd", turns="open"), reader.source("ift", passes=0.5, turns="task")]
    plan = Plan(PlanConfig(micro_batches=4, max_examples=2, max_seconds=2, max_tokens=40, block_shards=1), sources, 1)
    schedule = Schedule([Segment(Phase(name="only", steps=steps, mix={}), plan, [0, 1])])

    def load(refs: Sequence[ExampleRef]) -> str:
        lines = []
        for example in [reader.read(ref.row) for ref in refs]:
            heard = b"" if example.samples_T is None else example.samples_T.tobytes()
            lines.append(f"{example.key}.{example.turn}:{hashlib.sha256(heard).hexdigest()[:8]}:{len(example.tokens)}")
        return ",".join(lines)

    for fed in feed(schedule, load, rank, world, start, 2, workers):  # type: ignore[arg-type]
        print(" ".join(f"[{batch}]" for batch in fed.batches), flush=True)


if __name__ == "__main__":
    main()
