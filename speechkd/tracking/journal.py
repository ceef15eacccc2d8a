"""The run's journal `journal.jsonl`: an append-only log of all that trackers show, one JSON object per line.

Kinds of records: metric, param, tag, status, artifact, dataset (what the run reads), checkpoint (committed, or removed later) and export.
A metric is keyed by (name, step) and its first value counts; for evaluation results the last value counts. A kill may tear the last line:
readers skip it, and the next writer starts a new line, so one kill loses at most one record. Training needs nothing but this file; a
separate process forwards it (`sender_process`).
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from speechkd.core.log import say
from speechkd.tracking.points import PointIndex
from speechkd.tracking.records import LATEST, STATUSES, Record, parse_record
from speechkd.tracking.redact import flat_texts

JOURNAL = "journal.jsonl"
UNWRITTEN = 20_000
"""Records that wait in memory while the disk is full: a day at one record in four seconds"""
HEARTBEAT_S = 900.0
"""Age of the newest sign of life from which a process on another node counts as dead"""


class Journal:
    """Writes the journal: one write call without fsync per record, cheap enough for every step. Only rank 0 writes.

    A full or failing disk does not stop training: it is reported once, and records wait in memory, with their time, until it works again.
    """

    def __init__(self, path: Path) -> None:
        from speechkd.core import dist  # imported here so that readers of the journal (the sender) do not load torch

        self.path = path
        self._points = PointIndex()
        self._results: dict[str, tuple[int, float | str]] = {}
        self._written: dict[str, dict[str, str]] = {"param": {}, "tag": {}}
        self._checkpoints: dict[str, tuple[int, str]] = {}
        self._objects: set[str] = set()
        self._handle = -1
        self._unwritten: deque[bytes] = deque(maxlen=UNWRITTEN)
        self._broken = self._fresh_line = False
        if dist.rank() != 0:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for record in read_journal(path):
            self._restore(record)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._handle).st_size
        self._fresh_line = size > 0 and os.pread(self._handle, 1, size - 1) != b"\n"

    def _restore(self, record: Record) -> None:
        match record["kind"]:
            case "metric" if record.get(LATEST):
                self._results.update({name: (record["step"], value) for name, value in record["values"].items()})
            case "metric":
                for name in record["values"]:
                    self._points.take(name, record["step"])
            case "param" | "tag" as kind:
                self._written[kind].update(record["values"])
            case "checkpoint":
                self._note_checkpoint(record)
            case "dataset" | "export":
                self._objects.add(_identity(record))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step. A (metric, step) written before keeps its first value. NaN and infinities become text."""
        if self._handle < 0:
            return
        new = {name: _plain(value) for name, value in values.items() if self._points.take(name, step)}
        if new:
            self._append({"kind": "metric", "step": step, "time_ms": now_ms(), "values": new})

    def results(self, step: int, values: Mapping[str, float], dataset: tuple[str, str] | None = None) -> None:
        """Write evaluation results of the checkpoint of `step`, on `dataset` (name, digest).

        A later evaluation of the same step replaces them: the server shows the later value.
        """
        results = {name: (step, _plain(value)) for name, value in values.items()}
        new = {name: value for name, (_, value) in results.items() if self._results.get(name) != results[name]}
        self._results.update(results)
        if new:
            on = {"dataset": list(dataset)} if dataset else {}
            self._append({"kind": "metric", "step": step, "time_ms": now_ms(), LATEST: True, **on, "values": new})

    def params(self, values: Mapping[str, Any]) -> None:
        """Write settings. Nested mappings become dotted names, secrets are masked, unchanged values are not written again."""
        self._named("param", values)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Write facts about the run (git revision, digests, job id); the latest value counts."""
        self._named("tag", values)

    def status(self, status: str, reason: str = "") -> None:
        """Write RUNNING at every start, with the process so that others can check it; FINISHED, FAILED or KILLED at the end, and why."""
        assert status in STATUSES, f"status must be one of {STATUSES}, is {status}"
        record: Record = {"kind": "status", "status": status, "time_ms": now_ms()}
        if status == "RUNNING":
            record |= {"pid": os.getpid(), "host": socket.gethostname(), "boot": process_start_time(os.getpid())}
        if reason:
            record["reason"] = reason
        self._append(record)

    def artifact(self, relative: str) -> None:
        """Register a file of the run folder as an artifact; `relative` is its path inside the folder."""
        self._append({"kind": "artifact", "path": _inside(relative), "time_ms": now_ms()})

    def dataset(self, name: str, digest: str, facts: Mapping[str, Any]) -> None:
        """Write that the run reads this dataset. `facts`: version, licence, source, samples of each split, ..."""
        self._object({"kind": "dataset", "name": name, "digest": digest, "facts": flat_texts(facts)})

    def checkpoint(self, step: int, relative: str, digest: str) -> None:
        """Write that a checkpoint is committed at `relative`, a path inside the run folder."""
        path = _inside(relative)
        if self._checkpoints.get(path) != (step, digest):
            self.checkpoint_removed(path)  # a resumed run may save the same step again
            self._checkpoints[path] = (step, digest)
            self._append({"kind": "checkpoint", "step": step, "path": path, "digest": digest, "kept": True, "time_ms": now_ms()})

    def checkpoint_removed(self, relative: str) -> None:
        """Write that a checkpoint was removed, to keep only the newest."""
        if (known := self._checkpoints.pop(relative, None)) is not None:
            record: Record = {"kind": "checkpoint", "step": known[0], "path": relative, "digest": known[1], "kept": False}
            self._append({**record, "time_ms": now_ms()})

    @property
    def checkpoints(self) -> list[str]:
        """Paths of the checkpoints that were written and not removed."""
        return list(self._checkpoints)

    def _note_checkpoint(self, record: Record) -> None:
        if record["kept"]:
            self._checkpoints[record["path"]] = (record["step"], record["digest"])
        else:
            self._checkpoints.pop(record["path"], None)

    def export(self, step: int, path: Path, digest: str, model: str, facts: Mapping[str, Any]) -> None:
        """Write that the checkpoint of `step` was exported to `path`, as a version of the registered model `model`."""
        self._object({"kind": "export", "step": step, "path": str(path), "digest": digest, "model": model, "facts": flat_texts(facts)})

    def _object(self, record: Record) -> None:
        """Write a record once, whatever the number of starts."""
        if _identity(record) not in self._objects:
            self._objects.add(_identity(record))
            self._append({**record, "time_ms": now_ms()})

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        if self._handle >= 0:
            if self._unwritten and not self._write_all():
                say(f"journal: {len(self._unwritten)} records are lost: `{self.path}` could not be written to the end")
            os.close(self._handle)
            self._handle = -1

    def _named(self, kind: str, values: Mapping[str, Any]) -> None:
        written = self._written[kind]
        new = {name: text for name, text in flat_texts(values).items() if written.get(name) != text}
        written.update(new)
        if new:
            self._append({"kind": kind, "time_ms": now_ms(), "values": new})

    def _append(self, record: Record) -> None:
        if self._handle < 0:
            return
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._unwritten.append(text.encode("utf-8", "backslashreplace") + b"\n")
        self._write_all()

    def _write_all(self) -> bool:
        """Write what is not written yet, oldest first; False if the disk does not take it."""
        while self._unwritten:
            line = (b"\n" if self._fresh_line else b"") + self._unwritten[0]
            try:
                written = os.write(self._handle, line)  # one call, so that lines of two writers never mix
                if written < len(line) - 1:
                    raise OSError(f"only {written} bytes fitted")
            except OSError as error:
                self._fresh_line = True
                self._report_failure(error)
                self._broken = True
                return False
            self._fresh_line = written < len(line)  # the record is complete, only its newline is missing
            self._unwritten.popleft()
        self._broken = False
        return True

    def _report_failure(self, error: OSError) -> None:
        if not self._broken:
            say(f"journal: cannot write `{self.path}`: {error}; training goes on, the last {UNWRITTEN:,} records wait in memory")


def _identity(record: Record) -> str:
    return json.dumps({key: value for key, value in record.items() if key != "time_ms"}, sort_keys=True)


def _inside(relative: str) -> str:
    path = PurePosixPath(relative)
    assert not path.is_absolute() and ".." not in path.parts, f"path must lie inside the run folder, is {relative}"
    return str(path)


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
            record = parse_record(line)
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


def process_start_time(pid: int) -> float | None:
    """Start time of process `pid` (seconds since 1970); None if it is gone or a zombie. Detects a reused process id."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def writer_alive(status: Record | None, run_dir: Path) -> bool:
    """Whether the process that wrote RUNNING is alive.

    On another node it cannot be asked: it counts as dead once nothing in the run folder has moved for HEARTBEAT_S, neither the journal nor
    the node's system samples (`speechkd.tracking.system`).
    """
    if status is None:
        return True
    if status.get("host") != socket.gethostname():
        signs = [run_dir / JOURNAL, *(run_dir / "system").glob("*.jsonl")]
        newest = max((sign.stat().st_mtime for sign in signs if sign.exists()), default=time.time())
        return len(signs) == 1 or time.time() - newest < HEARTBEAT_S  # without samples there may just be a long step
    started = process_start_time(status["pid"])
    return started is not None and started == status.get("boot")


def last_status(path: Path) -> str | None:
    """The run's last status; RUNNING becomes FAILED if its process is gone; None if there is no status yet."""
    statuses = [record for record in read_journal(path) if record["kind"] == "status"]
    if not statuses:
        return None
    died = statuses[-1]["status"] == "RUNNING" and not writer_alive(statuses[-1], path.parent)
    return "FAILED" if died else str(statuses[-1]["status"])


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _plain(value: float) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
