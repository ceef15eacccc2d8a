"""Doing things ahead of time on several threads, and handing them out in order.

Threads, not processes: reading a member, its sha256 and decoding leave Python's lock, so nothing has to be pickled or copied between
processes, and a killed run leaves nobody behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def in_order(work: Callable[[Item], Done], items: Iterable[Item], workers: int, ahead: int) -> Generator[Done, None, None]:
    """`work(item)` of every item, in the items' order; begun by `workers` threads at most `ahead` items before it is asked for.

    0 workers: done when asked for, by the caller. What `work` raises is raised at its item; closing the generator drops what is not begun.
    """
    todo = iter(items)
    if not workers:
        yield from map(work, todo)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    begun: deque[Future[Done]] = deque()
    try:
        begun.extend(pool.submit(work, item) for item in islice(todo, max(1, ahead)))
        while begun:
            done = begun.popleft().result()
            begun.extend(pool.submit(work, item) for item in islice(todo, 1))
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
