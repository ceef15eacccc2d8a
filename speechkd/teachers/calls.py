"""Many calls to one server at once: a bounded number in flight, waits between attempts, and patience while the server is away.

Knows nothing of HTTP. Results come as they are ready, and a slot makes its next call only when the consumer has come back for more:
what has been yielded can be made durable first, so a kill costs no more calls than were in flight.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

from speechkd.core.log import say

T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


class Again(Exception):
    """A call that may succeed later: `wait` seconds if the server says so; `away` where nobody answered; not `counts` for "slow down"."""

    def __init__(self, reason: str, wait: float | None = None, away: bool = False, counts: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.away, self.counts = wait, away, counts


class Rejected(Exception):
    """A call that this server will never answer."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard to try. `where` names the server in messages."""

    where: str
    concurrency: int
    retries: int
    patience_s: float


class Calls(Generic[T]):
    """One result for each number in `order`.

    `attempt` makes one call; it raises Again or Rejected, and anything else stops the run. `failed` makes the result of a call that was
    rejected, or that failed more than `retries` times, and more than once, while the server was known to work: by an answer to another
    since the last failure, or because `lives` said so just before the call. `finish` frees what attempts use.
    """

    def __init__(
        self,
        pace: Pace,
        order: Sequence[int],
        attempt: Callable[[int], Awaitable[T]],
        failed: Callable[[int, str], T],
        lives: Callable[[], Awaitable[bool]],
        finish: Callable[[], Awaitable[None]],
    ) -> None:
        self._pace, self._left = pace, iter(order)
        self._attempt, self._failed, self._lives, self._finish = attempt, failed, lives, finish
        self._ready: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()
        self._committed = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []
        self._open = min(pace.concurrency, len(order))
        self._error: Exception | None = None
        self._heard = monotonic()
        self._told = False

    def run(self) -> Iterator[list[tuple[int, T]]]:
        """Results as they come, a few at a time. Raises ConnectionError where the server is away for longer than `patience_s`."""
        loop = asyncio.new_event_loop()
        try:
            while batch := loop.run_until_complete(self._next()):
                yield batch
        finally:
            loop.run_until_complete(self._close())
            loop.close()

    async def _next(self) -> list[tuple[int, T]]:
        """At least one result; none at the end. Being called says that the last batch is committed."""
        if not self._slots:
            self._slots = [asyncio.create_task(self._slot()) for _ in range(self._open)]
        self._committed.set()
        self._committed = asyncio.Event()
        batch: list[tuple[int, T]] = []
        while not batch and self._error is None and self._open:
            found = [await self._ready.get()]
            while not self._ready.empty():
                found.append(self._ready.get_nowait())
            for item in found:
                if item is None:
                    self._open -= 1
                elif isinstance(item, Exception):
                    self._error = self._error or item
                else:
                    batch.append(item)
        if not batch and self._error is not None:
            raise self._error
        return batch

    async def _close(self) -> None:
        """Drop what is in flight."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        await self._finish()

    async def _slot(self) -> None:
        try:
            for number in self._left:
                result = await self._persist(number)
                committed = self._committed
                self._ready.put_nowait((number, result))
                await committed.wait()
            self._ready.put_nowait(None)
        except Exception as error:
            self._ready.put_nowait(error)

    async def _persist(self, number: int) -> T:
        failures = calls = 0
        works = True  # as far as was known before the call was made: what fails in an outage is no fault of the request's
        while True:
            try:
                result = await self._attempt(number)
                self._back()
                return result
            except Rejected as refusal:
                self._back()
                return self._failed(number, str(refusal))
            except Again as problem:
                again = problem
            calls += 1
            failures += works and again.counts and not again.away
            if failures > self._pace.retries and works and calls > 1:
                return self._failed(number, f"{again} (after {calls} calls)")
            failed_at = monotonic()
            self._mind_patience(again)
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(calls - 1, 10)) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(wait, min(again.wait or 0.0, self._pace.patience_s)))
            works = self._heard > failed_at or await self._lives()

    def _back(self) -> None:
        if self._told:
            say(f"teach: the server at {self._pace.where} answers again")
        self._heard, self._told = monotonic(), False

    def _mind_patience(self, problem: Again) -> None:
        silent = monotonic() - self._heard
        if silent > self._pace.patience_s:
            raise ConnectionError(f"no answer from the teacher's server for {silent:.0f} s: {problem} ({self._pace.where}); run it again")
        if problem.away and not self._told:
            self._told = True
            say(f"teach: the server at {self._pace.where} is away ({problem}); waiting up to {self._pace.patience_s:g} s")
