"""Doing things ahead of time on several threads, and handing them out in order.

Threads, not processes: reading a member, its sha256 and decoding leave Python's lock, so nothing has to be pickled or copied between
processes, and a killed run leaves nobody behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def in_order(
    work: Callable[[Item], Done],
    items: Iterable[Item],
    workers: int,
    ahead: int,
    size: Callable[[Done], int] | None = None,
    most: int = 0,
) -> Generator[Done, None, None]:
    """`work(item)` of every item, in the items' order; begun by `workers` threads at most `ahead` items before it is asked for.

    With `size`, what is done and waits, and what is begun, counted as the largest so far, stay below `most` bytes together: memory is at
    most that, and one item for each thread. 0 workers: done when asked for, by the caller. What `work` raises is raised at its item;
    closing the generator drops what is not begun.
    """
    todo = iter(items)
    if not workers:
        yield from map(work, todo)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    begun: deque[Future[Done]] = deque()
    room: _Room[Done] = _Room(size, most, workers)

    def begin() -> None:
        while len(begun) < max(1, ahead) and room.for_another(begun):
            for item in islice(todo, 1):
                begun.append(pool.submit(work, item))
                break
            else:
                return

    try:
        begin()
        while begun:
            done = begun.popleft().result()
            room.saw(done)
            begin()
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Room(Generic[Done]):
    """Whether memory has room for one more item that is done ahead."""

    def __init__(self, size: Callable[[Done], int] | None, most: int, workers: int) -> None:
        self._size, self._most, self._workers = size, most, workers
        self._largest: int | None = None

    def saw(self, done: Done) -> None:
        """An item was finished: others may be as large."""
        if self._size is not None:
            self._largest = max(self._largest or 0, self._size(done))

    def for_another(self, begun: deque[Future[Done]]) -> bool:
        if self._size is None or not begun:  # one is always begun, however large it is
            return True
        if self._largest is None:  # nothing is known yet
            return len(begun) < self._workers
        largest = self._largest
        held = sum(self._size(future.result()) if _succeeded(future) else largest for future in begun)
        return held + largest <= self._most


def _succeeded(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
