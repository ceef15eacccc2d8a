"""Answer journal: stores each teacher answer as soon as it arrives, so that every request gets exactly one answer.

The journal of a shard is `answers/000000.jsonl` in the column's folder: one JSON object per line, appended under a lock and synced. The
first committed answer to a key counts, whichever process wrote it. Torn or damaged lines are ignored. So a killed `teach` repeats only the
requests that were in flight, and two writers of one shard agree.

A key is the digest of everything that determines an answer: column spec (teacher, revision, sampling settings, template, tokenizer), sample
digest, turn, question, and the text in the audio span of the teacher's prompt.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from speechkd.core.errors import DataError
from speechkd.core.files import canonical_json, digest, fsync_folder
from speechkd.core.locks import claimed
from speechkd.teachers.base import Answer, Request, Teacher

FINISHED = "eos"
"""Stop reason of a complete answer"""


@runtime_checkable
class Streaming(Protocol):
    """A backend that yields answers as they arrive. The caller commits each batch before it asks for the next."""

    def stream(self, requests: Sequence[Request], done: Collection[int]) -> Iterator[list[tuple[int, Answer]]]:
        """Yield batches of (request number, answer), in any order, for every request whose number is not in `done`."""


def answer_key(spec_digest: str, sample_digest: str, request: Request, span_text: str) -> str:
    """Journal key of one answer. `span_text`: the text in the audio span of the teacher's prompt."""
    return digest([spec_digest, sample_digest, request.turn, request.question, span_text])


def answer_all(teacher: Teacher, requests: Sequence[Request], keys: Sequence[str], journal: AnswerJournal) -> list[Answer]:
    """The answers to all requests, in order: from the journal where it has them, otherwise from the teacher, journaled as they arrive.

    A teacher that is not `Streaming` answers a shard in one piece; after a kill the whole shard is repeated, in the same batches.
    """
    stored = journal.read()
    done = {number for number, key in enumerate(keys) if key in stored}
    if isinstance(teacher, Streaming):
        for batch in teacher.stream(requests, done):
            journal.commit([(keys[number], answer) for number, answer in batch])
    elif len(done) < len(requests):
        todo = [number for number in range(len(requests)) if number not in done]
        fresh = dict(zip((keys[number] for number in todo), teacher.answer([requests[number] for number in todo]), strict=True))
        if not done:
            return [fresh[key] for key in keys]
        journal.commit(list(fresh.items()))
    stored = journal.read()
    return [stored[key] for key in keys]


class AnswerJournal:
    """The journal of one shard. Any number of processes may have it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._end = 0

    def read(self) -> dict[str, Answer]:
        """Read new lines; returns key -> the answer that counts."""
        if self.path.is_file():
            with self.path.open("rb") as stream:
                self._read_new_lines(stream.fileno())
        return dict(self._answers)

    def commit(self, answers: Sequence[tuple[str, Answer]]) -> None:
        """Append the answers to keys that have none yet, and sync. An answer that another writer committed first stays."""
        self._append(lambda: [{"key": key, "answer": _packed(answer)} for key, answer in dict(answers).items() if key not in self._answers])

    def forget_failed(self, keys: Collection[str]) -> None:
        """Drop cut and failed answers to `keys`, so that they can be asked again. Complete answers are never dropped."""
        self._append(lambda: [{"key": key, "again": True} for key in keys if key in self._answers and self._answers[key].stop != FINISHED])

    def _append(self, records: Callable[[], list[dict[str, Any]]]) -> None:
        new = not self.path.exists()
        with claimed(self.path, wait=True):
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                self._read_new_lines(handle)
                lines = b"".join(_line(record) for record in records())
                if not lines:
                    return
                size = os.fstat(handle).st_size
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                _write(handle, (b"\n" if torn else b"") + lines)
                os.fsync(handle)
                self._read_new_lines(handle)
            finally:
                os.close(handle)
        if new:
            fsync_folder(self.path.parent)

    def _read_new_lines(self, handle: int) -> None:
        """Parse the complete lines that were appended since the last read."""
        size = os.fstat(handle).st_size
        data = os.pread(handle, max(0, size - self._end), self._end)
        complete = data[: data.rfind(b"\n") + 1]
        self._end += len(complete)
        for line in complete.splitlines():
            record = _record(line)
            if record is None:
                continue
            key = record["key"]
            if "answer" in record:
                self._answers.setdefault(key, _unpacked(record["answer"]))
            elif key in self._answers and self._answers[key].stop != FINISHED:
                del self._answers[key]


def _packed(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in asdict(answer).items() if name != "thinking" or value}


def _unpacked(value: dict[str, Any]) -> Answer:
    try:
        return Answer(**value)
    except TypeError as error:
        raise DataError(f"an answer in the journal has another form than this version writes: {error}") from None


def _line(record: dict[str, Any]) -> bytes:
    text = canonical_json(record).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if the line is torn or damaged (its request is then repeated)."""
    check, _, text = line.partition(b" ")
    if check != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
