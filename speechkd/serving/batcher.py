"""Answers questions that arrive at any time in batches: one thread owns the model and takes all that wait when it is free."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from speechkd.models.exported import Answered, DistilledStudent


class Busy(Exception):
    """The queue is full."""


class Ending(Busy):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__("the server is about to end")


@dataclass(slots=True, eq=False)
class Job:
    """A question about a clip, and where its answer goes."""

    clip_T: np.ndarray
    """16 kHz mono float32"""
    question: str
    max_tokens: int
    logprobs: int | None = None
    on_text: Callable[[str], None] | None = None
    """gets the answer so far, from the model's thread, whenever it has grown"""
    answer: Future[Answered] = field(default_factory=Future)
    given_up: threading.Event = field(default_factory=threading.Event)
    """set by whoever no longer wants the answer: the job is dropped, or ends at its next token"""


class Batcher:
    """Batches of at most `most` jobs; at most `waiting` jobs wait."""

    def __init__(
        self,
        student: DistilledStudent,
        most: int = 16,
        waiting: int = 256,
        gather_s: float = 0.005,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`gather_s`: how long a first job waits for others. `on_batch` gets the size of each batch."""
        self._student, self._most, self._gather_s, self._on_batch = student, most, gather_s, on_batch
        self._jobs: queue.Queue[Job | None] = queue.Queue(waiting)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait for the model."""
        return self._jobs.qsize()

    @property
    def alive(self) -> bool:
        """Whether questions are still answered."""
        return self._thread.is_alive() and not self._closed.is_set()

    def submit(self, job: Job) -> None:
        """Put a job into the queue. Raises Busy where it is full or closed, at once."""
        if not self.alive:
            raise Ending
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy(f"{self._jobs.maxsize} questions wait already") from None

    def close(self, timeout: float = 30.0) -> None:
        """Answer what runs, drop what waits, end the thread."""
        self._closed.set()
        try:
            self._jobs.put_nowait(None)
        except queue.Full:
            pass  # the thread looks at `_closed` before each batch
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closed.is_set():
            batch = self._next_batch()
            if batch:
                self._on_batch(len(batch))
                self._answer(batch)
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            if job is not None:
                job.answer.set_exception(Ending())

    def _next_batch(self) -> list[Job]:
        first = self._jobs.get()
        batch = [first]
        end = time.monotonic() + self._gather_s
        while len(batch) < self._most:
            try:
                batch.append(self._jobs.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
        return [job for job in batch if job is not None and not job.given_up.is_set()]

    def _answer(self, batch: list[Job]) -> None:
        said = [0] * len(batch)

        def follow(row: int, ids: list[int]) -> bool:
            job = batch[row]
            if job.on_text is not None and len(text := self._student.prompt.decode(ids)) > said[row]:
                said[row] = len(text)
                job.on_text(text)
            return not job.given_up.is_set()

        try:
            answers = self._student.answers(
                [job.clip_T for job in batch],
                [job.question for job in batch],
                [job.max_tokens for job in batch],
                follow=follow,
                logprobs=max((job.logprobs for job in batch if job.logprobs is not None), default=None),
            )
        except Exception as error:  # the server outlives any batch; each client hears of it
            for job in batch:
                job.answer.set_exception(error)
            return
        for job, answer in zip(batch, answers, strict=True):
            job.answer.set_result(answer)
