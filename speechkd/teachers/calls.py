"""Concurrent calls to one server: bounded concurrency, retries with backoff, and waiting through outages.

Independent of HTTP. Results are yielded as they arrive, and a slot starts its next call only after the consumer asks for more. The consumer
can store each result before that, so a kill loses only the calls in flight.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

from speechkd.core.log import say

T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


class RetryLater(Exception):
    """The call may succeed later.

    `wait`: seconds that the server asked for; `unreachable`: no connection; `counts`: False for "slow down", which uses up no retry.
    """

    def __init__(self, reason: str, wait: float | None = None, unreachable: bool = False, counts: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.unreachable, self.counts = wait, unreachable, counts


class RequestRefused(Exception):
    """The server will never answer this call."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to retry. `where` names the server in messages."""

    where: str
    concurrency: int
    retries: int
    patience_s: float


class Calls(Generic[T]):
    """One result for each number in `order`.

    `attempt` makes one call; it raises RetryLater or RequestRefused, and any other exception stops the run. `failed` makes the result of a
    call that was refused, or that failed more than `retries` times (and at least twice) while the server was known to work: another call
    got an answer since the last failure, or `server_alive` returned True just before the call. `close` frees what attempts use.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        order: Sequence[int],
        attempt: Callable[[int], Awaitable[T]],
        failed: Callable[[int, str], T],
        server_alive: Callable[[], Awaitable[bool]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._policy, self._left = policy, iter(order)
        self._attempt, self._failed, self._server_alive, self._close_client = attempt, failed, server_alive, close
        self._ready: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()
        self._committed = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []
        self._open = min(policy.concurrency, len(order))
        self._error: Exception | None = None
        self._last_reply = monotonic()
        self._outage_reported = False

    def run(self) -> Generator[list[tuple[int, T]], None, None]:
        """Yield results as they arrive, a few at a time. Raises ConnectionError after an outage longer than `patience_s`."""
        loop = asyncio.new_event_loop()
        try:
            while batch := loop.run_until_complete(self._next()):
                yield batch
        finally:
            loop.run_until_complete(self._close())
            loop.close()

    async def _next(self) -> list[tuple[int, T]]:
        """At least one result; an empty list at the end. A call means that the consumer has stored the previous batch."""
        if not self._slots:
            self._slots = [asyncio.create_task(self._slot()) for _ in range(self._open)]
        self._committed.set()
        self._committed = asyncio.Event()
        batch: list[tuple[int, T]] = []
        while not batch and self._error is None and self._open:
            items = [await self._ready.get()]
            while not self._ready.empty():
                items.append(self._ready.get_nowait())
            for item in items:
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
        """Cancel the calls in flight."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        await self._close_client()

    async def _slot(self) -> None:
        try:
            for number in self._left:
                result = await self._with_retries(number)
                committed = self._committed
                self._ready.put_nowait((number, result))
                await committed.wait()
            self._ready.put_nowait(None)
        except Exception as error:
            self._ready.put_nowait(error)

    async def _with_retries(self, number: int) -> T:
        failures = calls = 0
        works = True  # what was known before the call: a failure during an outage is not the request's fault
        while True:
            try:
                result = await self._attempt(number)
                self._mark_alive()
                return result
            except RequestRefused as refusal:
                self._mark_alive()
                return self._failed(number, str(refusal))
            except RetryLater as error:
                problem = error
            calls += 1
            failures += works and problem.counts and not problem.unreachable
            if failures > self._policy.retries and works and calls > 1:
                return self._failed(number, f"{problem} (after {calls} calls)")
            failed_at = monotonic()
            self._check_patience(problem)
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(calls - 1, 10)) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(wait, min(problem.wait or 0.0, self._policy.patience_s)))
            works = self._last_reply > failed_at or await self._server_alive()

    def _mark_alive(self) -> None:
        if self._outage_reported:
            say(f"teach: the server at {self._policy.where} answers again")
        self._last_reply, self._outage_reported = monotonic(), False

    def _check_patience(self, problem: RetryLater) -> None:
        silent = monotonic() - self._last_reply
        if silent > self._policy.patience_s:
            raise ConnectionError(f"no answer from the teacher's server for {silent:.0f} s: {problem} ({self._policy.where}); run it again")
        if problem.unreachable and not self._outage_reported:
            self._outage_reported = True
            say(f"teach: the server at {self._policy.where} is away ({problem}); waiting up to {self._policy.patience_s:g} s")
