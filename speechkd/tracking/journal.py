"""The run's journal `journal.jsonl`: an append-only log of metrics, params, tags, status and artifacts, one JSON object per line.

A metric is keyed by (name, step) and its first value counts; for evaluation results the last value counts. A kill may tear the last line:
readers skip it, and the next writer starts a new line, so one kill loses at most one record. Training needs nothing but this file; a
separate process forwards it to a server (`mlflow_process`).
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
"""Key that marks a record whose values replace earlier ones of the same step"""
_SECRET = re.compile(  # whole words: `max_new_tokens` and `tokenizer` are not secrets
    r"(?<![a-z])(token|secrets?|passwords?|passwd|(api|access|private)_?keys?|credentials?|authorization)(?![a-z])"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")

Record = dict[str, Any]


class PointIndex:
    """The set of (metric, step) pairs already written: a sorted array of steps per name, eight bytes per point."""

    def __init__(self) -> None:
        self._steps: dict[str, array[int]] = {}

    def take(self, name: str, step: int) -> bool:
        """Add (name, step); returns False if it was there already."""
        steps = self._steps.setdefault(name, array("q"))
        if not steps or step > steps[-1]:  # the usual case: steps increase
            steps.append(step)
            return True
        at = bisect_left(steps, step)
        if steps[at] == step:
            return False
        steps.insert(at, step)
        return True

    def release(self, name: str, step: int) -> None:
        """Undo `take` after a failed write."""
        steps = self._steps[name]
        steps.pop(bisect_left(steps, step))


class Journal:
    """Writes the journal: one write call without fsync per record, cheap enough for every step. Only rank 0 writes.

    A full or failing disk does not stop training: it is reported once, and writing resumes as soon as it works again.
    """

    def __init__(self, path: Path) -> None:
        from speechkd.core import dist  # imported here so that readers of the journal (the sender) do not load torch

        self.path = path
        self._points = PointIndex()
        self._results: dict[str, tuple[int, float | str]] = {}
        self._written: dict[str, dict[str, str]] = {"param": {}, "tag": {}}
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
            elif record["kind"] in self._written:
                self._written[record["kind"]].update(record["values"])
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._handle).st_size
        self._fresh_line = size > 0 and os.pread(self._handle, 1, size - 1) != b"\n"

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step. A (metric, step) written before keeps its first value. NaN and infinities become text."""
        if self._handle < 0:
            return
        new = {name: _plain(value) for name, value in values.items() if self._points.take(name, step)}
        if new and not self._append({"kind": "metric", "step": step, "time_ms": now_ms(), "values": new}):
            for name in new:
                self._points.release(name, step)

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """Write evaluation results of `step`. A later evaluation of the same step replaces them: the server shows the later value."""
        results = {name: (step, _plain(value)) for name, value in values.items()}
        new = {name: value for name, (_, value) in results.items() if self._results.get(name) != results[name]}
        if new and self._append({"kind": "metric", "step": step, "time_ms": now_ms(), LATEST: True, "values": new}):
            self._results.update(results)

    def params(self, values: Mapping[str, Any]) -> None:
        """Write settings. Nested mappings become dotted names, secrets are masked, unchanged values are not written again."""
        self._named("param", values)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Write facts about the run (git revision, digests, job id); the latest value counts."""
        self._named("tag", values)

    def status(self, status: str) -> None:
        """Write RUNNING at every start, with the process so that others can check it; FINISHED, FAILED or KILLED at the end."""
        assert status in STATUSES, f"status must be one of {STATUSES}, is {status}"
        record: Record = {"kind": "status", "status": status, "time_ms": now_ms()}
        if status == "RUNNING":
            record |= {"pid": os.getpid(), "host": socket.gethostname(), "boot": process_start_time(os.getpid())}
        self._append(record)

    def artifact(self, relative: str) -> None:
        """Register a file of the run folder as an artifact; `relative` is its path inside the folder."""
        path = PurePosixPath(relative)
        assert not path.is_absolute() and ".." not in path.parts, f"artifact must lie inside the run folder, is {relative}"
        self._append({"kind": "artifact", "path": str(path), "time_ms": now_ms()})

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _named(self, kind: str, values: Mapping[str, Any]) -> None:
        written = self._written[kind]
        new = {name: text for name, text in flat_texts(values).items() if written.get(name) != text}
        if new and self._append({"kind": kind, "time_ms": now_ms(), "values": new}):
            written.update(new)

    def _append(self, record: Record) -> bool:
        if self._handle < 0:
            return False
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        line = ("\n" if self._fresh_line else "").encode() + text.encode("utf-8", "backslashreplace") + b"\n"
        try:
            written = os.write(self._handle, line)  # one call, so that lines of two writers never mix
            if written < len(line) - 1:
                raise OSError(f"only {written} bytes fitted")
            self._fresh_line = written < len(line)  # the record is complete, only its newline is missing
        except OSError as error:
            self._fresh_line = True
            with suppress(OSError):  # the log may be on the same full disk
                self._report_failure(error)
            self._broken = True
            return False
        self._broken = False
        return True

    def _report_failure(self, error: OSError) -> None:
        if not self._broken:
            say(f"journal: cannot write `{self.path}`: {error}; training goes on, these metrics are lost until it works again")


def read_journal(path: Path) -> Iterator[Record]:
    """All complete records in file order; torn lines are skipped. A missing file gives none."""
    for record, _ in records_from(path, 0):
        yield record


def records_from(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """Complete records from byte `offset` on, each with the offset after it; stops before a line that is still being written."""
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
    """Metric -> its (step, value) points by step. The first value of a step counts; for evaluation results the last."""
    series: dict[str, dict[int, float]] = {}
    for record in read_journal(path):
        if record["kind"] == "metric":
            for name, value in record["values"].items():
                points = series.setdefault(name, {})
                if record.get(LATEST) or record["step"] not in points:
                    points[record["step"]] = float(value)
    return {name: sorted(points.items()) for name, points in series.items()}


def flat_texts(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted name -> text. Masks values under secret-like names, and credentials inside URLs."""
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


def process_start_time(pid: int) -> float | None:
    """Start time of process `pid` (seconds since 1970); None if it is gone or a zombie. Detects a reused process id."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def writer_alive(status: Record | None) -> bool:
    """Whether the process that wrote RUNNING is alive; a process on another machine cannot be checked and counts as alive."""
    if status is None or status.get("host") != socket.gethostname():
        return True
    started = process_start_time(status["pid"])
    return started is not None and started == status.get("boot")


def last_status(path: Path) -> str | None:
    """The run's last status; RUNNING becomes FAILED if its process is gone; None if there is no status yet."""
    statuses = [record for record in read_journal(path) if record["kind"] == "status"]
    if not statuses:
        return None
    died = statuses[-1]["status"] == "RUNNING" and not writer_alive(statuses[-1])
    return "FAILED" if died else str(statuses[-1]["status"])


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
