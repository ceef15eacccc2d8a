"""Reading ahead in order, and index rows that come and go shard by shard."""

from __future__ import annotations

import threading
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkd.data.storage import index_rows
from speechkd.data.storage.index_rows import ShardRows
from speechkd.train.prefetch import in_order


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.integers(1, 9), st.lists(st.integers(0, 3), max_size=30))
def test_order_is_the_items_order_whatever_the_threads_do(workers: int, ahead: int, waits: list[int]) -> None:
    def work(item: tuple[int, int]) -> int:
        time.sleep(item[1] / 5000)
        return item[0]

    assert list(in_order(work, enumerate(waits), workers, ahead)) == list(range(len(waits)))


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_error_is_raised_at_its_item(workers: int) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("the third")
        return item

    done = in_order(work, range(10), workers, 4)
    assert [next(done) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(done)


def test_no_more_than_asked_is_begun_and_closing_ends_it() -> None:
    begun: list[int] = []
    names = set()

    def work(item: int) -> int:
        begun.append(item)
        names.add(threading.current_thread().name)
        return item

    done = in_order(work, iter(range(1000)), 3, 5)
    assert next(done) == 0
    time.sleep(0.1)
    assert len(begun) <= 6 and all(name.startswith("ahead") for name in names)
    done.close()
    count = len(begun)
    time.sleep(0.1)
    assert len(begun) == count and not [t for t in threading.enumerate() if t.name in names]


def test_several_threads_work_at_once() -> None:
    """Each of four items waits for the other three."""
    barrier = threading.Barrier(4, timeout=30)
    assert sorted(in_order(lambda item: (barrier.wait(), item)[1], range(4), 4, 4)) == [0, 1, 2, 3]


def test_rows_are_found_and_only_a_few_shards_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_rows, "SHARDS_KEPT", 2)
    read: list[int] = []
    counts = [3, 0, 1, 4]

    def table(shard: int) -> pa.Table:
        read.append(shard)
        return pa.table({"key": [f"{shard}.{local_row}" for local_row in range(counts[shard])]})

    rows = ShardRows(counts, table)
    found = [rows.find(row) for row in range(8)]
    assert [(shard, local_row) for shard, local_row, _ in found] == [(0, 0), (0, 1), (0, 2), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3)]
    assert [each["key"][local_row] for _, local_row, each in found] == ["0.0", "0.1", "0.2", "2.0", "3.0", "3.1", "3.2", "3.3"]
    assert read == [0, 2, 3]
    rows.find(0), rows.find(3)
    assert read == [0, 2, 3, 0, 2], "the longest unused one was let go"
    for row in (-1, 8):
        with pytest.raises(IndexError):
            rows.find(row)
