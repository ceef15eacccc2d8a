"""The run's own record: `journal.jsonl`, append-only, one JSON object a line, keyed (metric, step), first write wins; of results the last.

A kill may tear the last line. Readers skip it, and the next writer starts on a fresh line, so one kill costs at most one record.
Training depends on nothing else: forwarding to a server reads this file from outside (`mlflow_process`).
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from speechkd.core.log import say

JOURNAL = "journal.jsonl"
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
MASK = "***"
LATEST = "latest"
"""marks a record whose values replace earlier ones of the same step"""
_SECRET = re.compile(  # whole words: `max_new_tokens` and `tokenizer` are no secrets
    r"(?<![a-z])(token|secrets?|passwords?|passwd|(api|access|private)_?keys?|credentials?|authorization)(?![a-z])"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")

Record = dict[str, Any]


class PointIndex:
    """Which (metric, step) are taken. Eight bytes a point: a sorted array of steps for each name."""

    def __init__(self) -> None:
        self._steps: dict[str, array[int]] = {}

    def take(self, name: str, step: int) -> bool:
        """True the first time (name, step) is asked for, False ever after."""
        steps = self._steps.setdefault(name, array("q"))
        if not steps or step > steps[-1]:  # nearly always: training goes forward
            steps.append(step)
            return True
        at = bisect_left(steps, step)
        if steps[at] == step:
            return False
        steps.insert(at, step)
        return True

    def give_back(self, name: str, step: int) -> None:
        """Undo a `take` whose write failed."""
        steps = self._steps[name]
        steps.pop(bisect_left(steps, step))


class Journal:
    """Writer. Cheap enough for every step (one write call, no fsync); only rank 0 writes, other ranks' calls do nothing.

    A full or failing disk does not stop training: it is said once, and writing goes on as soon as it works again.
    """

    def __init__(self, path: Path) -> None:
        from speechkd.core import dist  # here, so that readers of the journal (the sender) do not load torch

        self.path = path
        self._points = PointIndex()
        self._results: dict[str, tuple[int, float | str]] = {}
        self._said: dict[str, dict[str, str]] = {"param": {}, "tag": {}}
        self._handle = -1
        self._broken = self._fresh_line = False
        if dist.rank() != 0:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for record in read_journal(path):
            if record["kind"] == "metric" and record.get(LATEST):
                self._results.update({name: (record["step"], value) for name, value in record["values"].items()})
            elif record["kind"] == "metric":
                for name in record["values"]:
                    self._points.take(name, record["step"])
            elif record["kind"] in self._said:
                self._said[record["kind"]].update(record["values"])
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._handle).st_size
        self._fresh_line = size > 0 and os.pread(self._handle, 1, size - 1) != b"\n"

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step; a (metric, step) already written keeps its first value. NaN and infinities are kept, as text."""
        if self._handle < 0:
            return
        new = {name: _plain(value) for name, value in values.items() if self._points.take(name, step)}
        if new and not self._append({"kind": "metric", "step": step, "time_ms": now_ms(), "values": new}):
            for name in new:
                self._points.give_back(name, step)

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """Write what an evaluation of `step` found. Another one, of other settings, replaces it: on a server the later value counts."""
        found = {name: (step, _plain(value)) for name, value in values.items()}
        new = {name: value for name, (_, value) in found.items() if self._results.get(name) != found[name]}
        if new and self._append({"kind": "metric", "step": step, "time_ms": now_ms(), LATEST: True, "values": new}):
            self._results.update(found)

    def params(self, values: Mapping[str, Any]) -> None:
        """Write settings; nested mappings become dotted names, secrets are masked, what was written before is not written again."""
        self._named("param", values)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Write facts about the run (git revision, digests, job id); the latest value counts."""
        self._named("tag", values)

    def status(self, status: str) -> None:
        """Write RUNNING at every start; FINISHED, FAILED or KILLED at the end. RUNNING names its process, for others to see if it lives."""
        assert status in STATUSES, f"status must be one of {STATUSES}, is {status}"
        record: Record = {"kind": "status", "status": status, "time_ms": now_ms()}
        if status == "RUNNING":
            record |= {"pid": os.getpid(), "host": socket.gethostname(), "boot": boot_time(os.getpid())}
        self._append(record)

    def artifact(self, relative: str) -> None:
        """Write that a file of the run folder belongs to the run; `relative` is a path inside that folder."""
        path = PurePosixPath(relative)
        assert not path.is_absolute() and ".." not in path.parts, f"artifact must lie inside the run folder, is {relative}"
        self._append({"kind": "artifact", "path": str(path), "time_ms": now_ms()})

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _named(self, kind: str, values: Mapping[str, Any]) -> None:
        said = self._said[kind]
        new = {name: text for name, text in flat_texts(values).items() if said.get(name) != text}
        if new and self._append({"kind": kind, "time_ms": now_ms(), "values": new}):
            said.update(new)

    def _append(self, record: Record) -> bool:
        if self._handle < 0:
            return False
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        line = ("\n" if self._fresh_line else "").encode() + text.encode("utf-8", "backslashreplace") + b"\n"
        try:
            written = os.write(self._handle, line)  # one call: lines of two writers never mix
            if written < len(line) - 1:
                raise OSError(f"only {written} bytes fitted")
            self._fresh_line = written < len(line)  # the record is whole, its line's end is not
        except OSError as error:
            self._fresh_line = True
            with suppress(OSError):  # the log may lie on the same full disk
                self._complain(error)
            self._broken = True
            return False
        self._broken = False
        return True

    def _complain(self, error: OSError) -> None:
        if not self._broken:
            say(f"journal: cannot write `{self.path}`: {error}; training goes on, these metrics are lost until it works again")


def read_journal(path: Path) -> Iterator[Record]:
    """All whole records in file order; torn lines are skipped. A missing file has none."""
    for record, _ in records_from(path, 0):
        yield record


def records_from(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """Whole records from byte `offset` on, each with the offset behind it; ends before a last line that is still being written."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            offset += len(line)
            record = _parse(line)
            if record is not None:
                yield record, offset


def metric_series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """For each metric its (step, value) points in order of steps; the first write of a step counts, of results the last."""
    series: dict[str, dict[int, float]] = {}
    for record in read_journal(path):
        if record["kind"] == "metric":
            for name, value in record["values"].items():
                points = series.setdefault(name, {})
                if record.get(LATEST) or record["step"] not in points:
                    points[record["step"]] = float(value)
    return {name: sorted(points.items()) for name, points in series.items()}


def flat_texts(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted name -> text, with secrets masked: values under secret-like names, and credentials inside URLs."""
    out: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat_texts(value, f"{name}.")
        elif value is not None and _SECRET.search(_CAMEL.sub("_", name).lower()):
            out[name] = MASK
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            out[name] = _USERINFO.sub(f"{MASK}@", text)
    return out


def boot_time(pid: int) -> float | None:
    """When process `pid` started (seconds since 1970), None if it is gone or a zombie: tells a process from a later one with its number."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def writer_lives(status: Record | None) -> bool:
    """Whether the process that wrote RUNNING is alive; on another machine nobody can tell, so it is taken for alive."""
    if status is None or status.get("host") != socket.gethostname():
        return True
    born = boot_time(status["pid"])
    return born is not None and born == status.get("boot")


def last_status(path: Path) -> str | None:
    """How a run stands: its last status, where RUNNING counts only while its process lives (else FAILED); None before the first."""
    found = [record for record in read_journal(path) if record["kind"] == "status"]
    if not found:
        return None
    alive = found[-1]["status"] != "RUNNING" or writer_lives(found[-1])
    return str(found[-1]["status"]) if alive else "FAILED"


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _plain(value: float) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("time_ms"), int):
        return None
    kind, values = record.get("kind"), record.get("values")
    if kind == "metric":
        step = record.get("step")
        good = isinstance(step, int) and abs(step) < 1 << 62 and isinstance(values, dict) and all(map(_is_number, values.values()))
    elif kind in ("param", "tag"):
        good = isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
    else:
        good = (kind == "status" and record.get("status") in STATUSES) or (kind == "artifact" and isinstance(record.get("path"), str))
    return record if good else None


def _is_number(value: object) -> bool:
    return isinstance(value, float) or value in ("NaN", "Infinity", "-Infinity")
