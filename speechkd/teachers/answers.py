"""Exactly one answer per request: a journal beside the column, committed before anything else is done with an answer.

The journal of a shard is `answers/000000.jsonl` in the column's folder: one JSON object a line, appended under a lock and synced. The
first committed answer to a key counts, whoever wrote it; a line that a kill has torn, or that lost bits, counts for nothing. So a killed
`teach` asks again only what was in flight, and two writers of one shard agree.

A key is the digest of what makes an answer: column spec (teacher, revision, sampling settings, template, tokenizer), sample digest, turn,
question and what the teacher reads.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from speechkd.core.errors import DataError
from speechkd.core.files import canonical_json, digest, fsync_folder
from speechkd.teachers.base import Answer, Request, Teacher

FINISHED = "eos"
"""The one stop reason of an answer that is whole"""


@runtime_checkable
class Streaming(Protocol):
    """A backend that gives answers as they come. What it has yielded is committed before it is resumed."""

    def stream(self, requests: Sequence[Request], done: Collection[int]) -> Iterator[list[tuple[int, Answer]]]:
        """(number of the request, answer), in any order, for every request whose number is not in `done`."""


def answer_key(spec_digest: str, sample_digest: str, request: Request, reads: str) -> str:
    """What one answer is bound to. `reads`: the text in the audio span of the teacher's prompt."""
    return digest([spec_digest, sample_digest, request.turn, request.question, reads])


def answer_all(teacher: Teacher, requests: Sequence[Request], keys: Sequence[str], journal: AnswerJournal) -> list[Answer]:
    """The answers to all requests, in order: those of the journal, and for the rest the teacher's, journaled as they come.

    A teacher that does not stream answers in one piece, so a killed shard is asked again whole and in the same batches.
    """
    known = journal.read()
    done = {number for number, key in enumerate(keys) if key in known}
    if isinstance(teacher, Streaming):
        for batch in teacher.stream(requests, done):
            journal.commit([(keys[number], answer) for number, answer in batch])
    elif len(done) < len(requests):
        todo = [number for number in range(len(requests)) if number not in done]
        fresh = dict(zip((keys[number] for number in todo), teacher.answer([requests[number] for number in todo]), strict=True))
        if not done:
            return [fresh[key] for key in keys]
        journal.commit(list(fresh.items()))
    known = journal.read()
    return [known[key] for key in keys]


class AnswerJournal:
    """The journal of one shard. Any number of processes may have it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Answer] = {}
        self._end = 0

    def read(self) -> dict[str, Answer]:
        """Key -> the answer that counts, as of now."""
        if self.path.is_file():
            with self.path.open("rb") as stream:
                self._catch_up(stream.fileno())
        return dict(self._known)

    def commit(self, answers: Sequence[tuple[str, Answer]]) -> None:
        """Append what has no answer yet and sync it; where another writer was first, its answer stays."""
        self._append(lambda: [{"key": key, "answer": _packed(answer)} for key, answer in dict(answers).items() if key not in self._known])

    def forget_failed(self, keys: Collection[str]) -> None:
        """Make room for new answers to those of `keys` whose answer is cut or failed; a whole answer stays for ever."""
        self._append(lambda: [{"key": key, "again": True} for key in keys if key in self._known and self._known[key].stop != FINISHED])

    def _append(self, records: Any) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # freed by the system when the process dies
            self._catch_up(handle)
            lines = b"".join(_line(record) for record in records())
            if not lines:
                return
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            _write(handle, (b"\n" if torn else b"") + lines)
            os.fsync(handle)
            self._catch_up(handle)
        finally:
            os.close(handle)
        if new:
            fsync_folder(self.path.parent)

    def _catch_up(self, handle: int) -> None:
        """Take in the whole lines that were appended since the last look."""
        size = os.fstat(handle).st_size
        data = os.pread(handle, max(0, size - self._end), self._end)
        whole = data[: data.rfind(b"\n") + 1]
        self._end += len(whole)
        for line in whole.splitlines():
            record = _record(line)
            if record is None:
                continue
            key = record["key"]
            if "answer" in record:
                self._known.setdefault(key, _unpacked(record["answer"]))
            elif key in self._known and self._known[key].stop != FINISHED:
                del self._known[key]


def _packed(answer: Answer) -> dict[str, Any]:
    return asdict(answer)


def _unpacked(value: dict[str, Any]) -> Answer:
    try:
        return Answer(**value)
    except TypeError as error:
        raise DataError(f"an answer in the journal has another form than this version writes: {error}") from None


def _line(record: dict[str, Any]) -> bytes:
    text = canonical_json(record).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for a torn or damaged one, whose request is then asked again."""
    check, _, text = line.partition(b" ")
    if check != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
