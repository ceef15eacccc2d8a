"""Generated plans, small enough to be run through in milliseconds, and readers of them that are killed and come back."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from speechkd.data.plan.plan import ExampleRef, Plan, PlanConfig, PlanSource
from speechkd.train.config import Phase
from speechkd.train.schedule import Schedule, Segment, feed

Step = list[list[ExampleRef]]


def source(
    count: int,
    shards: int,
    seed: int = 0,
    passes: float = 1.0,
    stream: str = "kd",
    digest: str = "d",
    sort: bool = True,
    text: bool = False,
    turns: int = 1,
) -> PlanSource:
    """`count` examples over `shards` shards, up to `turns` neighbours of one clip; `text`: without audio."""
    draw = np.random.default_rng(seed)
    shard_N, seconds_N = draw.integers(0, shards, count), np.round(draw.uniform(0, 12, count), 2)
    tokens_N = draw.integers(1, 200, count)
    shard_N, clip_N = np.sort(shard_N) if sort else shard_N, None
    if turns > 1:
        clip_N = np.cumsum(draw.random(count) < 1.5 / turns)
        first_N = np.searchsorted(clip_N, clip_N)
        shard_N, seconds_N = shard_N[first_N], seconds_N[first_N]
    return PlanSource(stream, digest, shard_N, seconds_N * (not text), tokens_N, passes, clip_N=clip_N)


def epoch_steps(plan: Plan, epoch: int) -> list[Step]:
    """All steps of an epoch."""
    return [plan.micro_batches(epoch, step, range(plan.config.micro_batches)) for step in range(plan.steps_per_epoch(epoch))]


def divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


mixtures = st.lists(
    st.builds(
        source,
        count=st.integers(1, 120),
        shards=st.integers(1, 12),
        seed=st.integers(0, 99),
        passes=st.sampled_from([0.3, 0.5, 1.0, 1.0, 1.5, 2.0]),
        stream=st.sampled_from(["kd", "ift", "text"]),
        sort=st.booleans(),
        text=st.booleans(),
        turns=st.sampled_from([1, 1, 2, 3, 12]),
    ),
    min_size=1,
    max_size=3,
)


def plans(micro_batches: Sequence[int], most_examples: int) -> st.SearchStrategy[Plan]:
    """Plans over one to three sources in three streams."""
    config = st.builds(
        PlanConfig,
        micro_batches=st.sampled_from(micro_batches),
        max_examples=st.integers(1, most_examples),
        max_seconds=st.floats(1, 60),
        max_tokens=st.integers(1, 900),
        block_shards=st.integers(1, 5),
    )
    return st.builds(Plan, config, mixtures, st.integers(0, 2**31))


def global_steps(plan: Plan, steps: int, start: int, until: int, world: int, workers: dict[int, int]) -> Iterator[Step]:
    """What `world` ranks, each from a plan of its own making, are fed in global steps start .. until - 1; then all are gone.

    workers: threads of some ranks; the others read by themselves.
    """
    again: Plan = pickle.loads(pickle.dumps(plan))
    assert again.digest == plan.digest
    schedule = Schedule([Segment(Phase(name="only", steps=max(1, steps), mix={}), again, range(len(plan.sources)))])
    ranks = [feed(schedule, list, rank, world, start, 2, workers.get(rank, 0)) for rank in range(world)]  # type: ignore[arg-type]
    for _ in range(start, until):
        yield [refs for rank in ranks for refs in next(rank).batches]  # type: ignore[misc]
    for rank in ranks:
        rank.close()
