"""The answer journal keeps one answer per request: kills at any byte, two writers, repeated failures."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from speechkd.core.locks import claimed
from speechkd.teachers.answers import AnswerJournal, answer_all, answer_key
from speechkd.teachers.base import Answer, Request


def answer(text: str, stop: str = "eos") -> Answer:
    return Answer(text, [len(text)], 3, stop, "" if stop == "eos" else "why")  # type: ignore[arg-type]


def test_the_first_commit_counts_whoever_made_it(tmp_path: Path) -> None:
    one, other = AnswerJournal(tmp_path / "answers" / "000000.jsonl"), AnswerJournal(tmp_path / "answers" / "000000.jsonl")
    assert one.read() == other.read() == {}
    one.commit([("a", answer("first")), ("b", answer("b"))])
    other.commit([("a", answer("second")), ("c", answer("\u2028 über\n"))])
    assert one.read() == other.read() == {"a": answer("first"), "b": answer("b"), "c": answer("\u2028 über\n")}
    assert AnswerJournal(one.path).read() == one.read()


def test_a_journal_torn_at_any_byte_loses_only_what_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "whole.jsonl"
    records = [(f"k{i}", answer(f"text {i}")) for i in range(4)]
    AnswerJournal(path).commit(records[:3])
    synced = path.stat().st_size
    AnswerJournal(path).commit(records[3:])
    data = path.read_bytes()
    for length in range(len(data) + 1):
        torn = tmp_path / f"torn-{length}.jsonl"
        torn.write_bytes(data[:length])
        known = AnswerJournal(torn).read()
        assert known == dict(records[: len(known)]) and (length < synced or len(known) >= 3)
        again = AnswerJournal(torn)
        again.commit(records)
        assert again.read() == AnswerJournal(torn).read() == dict(records)
        torn.unlink()


def test_a_damaged_line_is_asked_again_and_never_believed(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    records = dict([(f"k{i}", answer(f"text {i}")) for i in range(3)])
    AnswerJournal(path).commit(list(records.items()))
    data = path.read_bytes()
    dice = random.Random(3)
    for _ in range(200):
        spot, bit = dice.randrange(len(data)), 1 << dice.randrange(8)
        path.write_bytes(data[:spot] + bytes([data[spot] ^ bit]) + data[spot + 1 :])
        known = AnswerJournal(path).read()
        assert set(known) <= set(records) and all(known[key] == records[key] for key in known) and len(known) >= 1


def _writer(path: str, who: int, count: int) -> None:
    journal = AnswerJournal(Path(path))
    for i in range(count):
        journal.commit([(f"k{i}", answer(f"{who} says {i}"))])


def test_two_writers_and_a_kill(tmp_path: Path) -> None:
    """Three processes commit other answers to the same keys, one is killed in the middle: all readers agree, on one answer each."""
    fork = multiprocessing.get_context("fork")
    path = tmp_path / "j.jsonl"
    writers = [fork.Process(target=_writer, args=(str(path), who, 150)) for who in range(3)]
    for writer in writers:
        writer.start()
    time.sleep(0.05)
    pid = writers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    early = AnswerJournal(path).read()
    for writer in writers:
        writer.join(60)
    known = AnswerJournal(path).read()
    assert len(known) == 150 and all(known[key] == value for key, value in early.items())


def test_whole_answers_stay_and_others_make_room(tmp_path: Path) -> None:
    one, other = AnswerJournal(tmp_path / "j.jsonl"), AnswerJournal(tmp_path / "j.jsonl")
    one.commit([("good", answer("good")), ("cut", answer("c", "length")), ("failed", answer("", "error"))])
    one.forget_failed(["good", "cut", "failed", "unknown"])
    other.forget_failed(["cut"])  # a second `--retry-failed` at the same time
    assert set(one.read()) == {"good"}
    other.commit([("good", answer("other")), ("cut", answer("whole")), ("failed", answer("", "error"))])
    other.forget_failed(["cut"])
    assert one.read() == {"good": answer("good"), "cut": answer("whole"), "failed": answer("", "error")}


class Stubborn:
    """A real streaming backend in miniature: counts what it is asked, stops after `stop_after` batches."""

    def __init__(self, stop_after: int = 99) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def accepts(self, request: Request) -> bool:
        return True

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        raise AssertionError("a streaming teacher is streamed")

    def stream(self, requests: Sequence[Request], done: Collection[int]) -> Iterator[list[tuple[int, Answer]]]:
        todo = [number for number in reversed(range(len(requests))) if number not in done]
        for count, start in enumerate(range(0, len(todo), 3)):
            if count == self.stop_after:
                raise ConnectionError("away")
            self.asked += [requests[number].key for number in todo[start : start + 3]]
            yield [(number, answer(requests[number].key)) for number in todo[start : start + 3]]


def test_what_is_journaled_is_not_asked_again(tmp_path: Path) -> None:
    requests = [Request(f"c{i}", "open-0", "Q?", {}) for i in range(10)]
    keys = [answer_key("spec", f"sample{i}", request, "{}") for i, request in enumerate(requests)]
    path = tmp_path / "j.jsonl"
    first, second = Stubborn(stop_after=2), Stubborn()
    with pytest.raises(ConnectionError):
        answer_all(first, requests, keys, AnswerJournal(path))  # type: ignore[arg-type]
    answers = answer_all(second, requests, keys, AnswerJournal(path))  # type: ignore[arg-type]
    assert [a.text for a in answers] == [f"c{i}" for i in range(10)]
    assert sorted(first.asked + second.asked) == sorted(request.key for request in requests)
    changed = [answer_key("other spec", f"sample{i}", request, "{}") for i, request in enumerate(requests)]
    assert not set(changed) & set(keys), "other settings, other answers"


def test_a_shard_is_claimed_by_one(tmp_path: Path) -> None:
    with claimed(tmp_path / "lock") as mine, claimed(tmp_path / "lock") as also:
        assert mine and not also
    with claimed(tmp_path / "lock", wait=True) as mine:
        assert mine
