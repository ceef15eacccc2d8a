"""Batches that are read ahead stay below a bound in bytes, and come in order whatever it is."""

from __future__ import annotations

import threading
import time

import pytest

from speechkd.train.prefetch import in_order

MB = 1 << 20


class Ledger:
    """Bytes that are made and not yet handed out, and their peak."""

    def __init__(self) -> None:
        self.held = self.peak = 0
        self._lock = threading.Lock()

    def make(self, size: int) -> bytes:
        with self._lock:
            self.held += size
            self.peak = max(self.peak, self.held)
        return bytes(size)

    def hand_out(self, made: bytes) -> None:
        with self._lock:
            self.held -= len(made)


@pytest.mark.parametrize(("most", "workers"), [(8 * MB, 1), (8 * MB, 3), (1, 2)])
def test_memory_is_bounded_by_bytes_and_one_item_for_each_thread(most: int, workers: int) -> None:
    sizes, ledger = [MB] * 40 + [3 * MB] * 10 + [MB] * 10, Ledger()
    made = in_order(ledger.make, sizes, workers, 50, len, most)
    seen = []
    for item in made:
        ledger.hand_out(item)
        seen.append(len(item))
        time.sleep(0.001)
    assert seen == sizes
    assert ledger.peak <= most + (workers + 1) * 3 * MB
    assert most == 1 or ledger.peak > 4 * MB, "it did not read ahead"


def test_without_a_bound_it_is_the_number_that_counts() -> None:
    ledger = Ledger()
    made = in_order(ledger.make, [MB] * 60, 4, 50)
    ledger.hand_out(next(made))
    end = time.monotonic() + 30
    while ledger.held < 50 * MB and time.monotonic() < end:
        time.sleep(0.01)
    assert ledger.held == 50 * MB
    made.close()


def test_an_error_is_raised_at_its_item_with_a_bound_too() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    made, seen = in_order(work, range(6), 2, 4, lambda number: 1, 10), []
    with pytest.raises(ValueError, match="three"):
        for number in made:
            seen.append(number)
    assert seen == [0, 1, 2]
