"""Examples that a model or the plan has no room for are left out with a count, before anything loads; all that fit stay."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkd.core.errors import InputError
from speechkd.data.plan.plan import PlanConfig, PlanSource
from speechkd.models.collate import Row
from speechkd.stages.inputs.lengths import Room


class Drawn(NamedTuple):
    """One example: tokens before and after its clip, in its answer, in its metadata, and its seconds."""

    before: int
    after: int
    answer: int
    metadata: int
    seconds: float


EXAMPLE = st.builds(
    Drawn, st.integers(1, 60), st.integers(1, 60), st.integers(1, 400), st.integers(0, 200), st.floats(0, 30).map(lambda s: round(s, 3))
)


def positions(seconds: float) -> int:
    """As a projector with 12.5 positions a second has them."""
    return math.ceil(12.5 * seconds)


def source_of(drawn: list[Drawn], row_N: np.ndarray | None) -> PlanSource:
    return PlanSource(
        stream="kd",
        digest="d",
        shard_N=np.zeros(len(drawn), dtype=np.int64),
        seconds_N=np.array([e.seconds for e in drawn]),
        tokens_N=np.array([e.answer for e in drawn], dtype=np.int32),
        row_N=row_N,
    )


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(EXAMPLE, min_size=1, max_size=12),
    limit=st.none() | st.integers(20, 700),
    budget=st.integers(50, 400),
    reader=st.none() | st.integers(20, 700),
    apart=st.booleans(),
)
def test_what_fits_stays_and_the_rest_is_counted(
    drawn: list[Drawn], limit: int | None, budget: int, reader: int | None, apart: bool
) -> None:
    row_N = 3 + 2 * np.arange(len(drawn)) if apart else None
    source = source_of(drawn, row_N)
    of_row = {source.row(number): example for number, example in enumerate(drawn)}
    asked = []

    def row_of(row: int) -> Row:
        asked.append(row)
        e = of_row[row]
        return Row([7] * e.before, [7] * e.after, [7] * e.answer, None, reads={"reader": [7] * (e.before + e.after + e.metadata)})

    def fits(e: Drawn) -> bool:
        text = e.before + e.after
        heard = limit is None or text + positions(e.seconds) + e.answer <= limit
        return heard and e.answer <= budget and (reader is None or text + e.metadata + e.answer <= reader)

    plan = PlanConfig(micro_batches=1, max_examples=8, max_seconds=60, max_tokens=budget)
    room = Room(plan=plan, student=limit, llm="m", readers={"reader": reader}, positions=positions)
    prompt_N = np.array([e.before + e.after for e in drawn])
    reads_N = np.array([e.metadata for e in drawn])
    wanted = [row for row, e in of_row.items() if fits(e)]
    if not wanted:
        with pytest.raises(InputError, match="all|of .* examples are left out as too long"):
            room.fitting(source, prompt_N, reads_N, row_of, str)
        return
    kept, left_out = room.fitting(source, prompt_N, reads_N, row_of, str)
    assert [kept.row(number) for number in range(len(kept))] == wanted
    assert left_out.count == len(drawn) - len(wanted)
    assert not left_out.count or (left_out.reason and f"{left_out.count:,} of {len(drawn):,} examples" in left_out.line())
    limits = [value for value in (limit, reader) if value is not None]
    if not limits or max(e.before + e.after + e.metadata + e.answer + positions(e.seconds) for e in drawn) < min(limits) - 20:
        assert not asked, "no example is read where none could be too long"
