"""`speechkd sync --to`: TensorBoard and Weights & Biases read back every point of the journal, with its step and time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.tracking.exports import export_journal, points
from speechkd.tracking.journal import JOURNAL, Journal


@pytest.fixture
def tracked(run: Path) -> Path:
    """A run with losses, results that were graded twice, secrets and a node's samples."""
    journal = Journal(run / JOURNAL)
    journal.status("RUNNING")
    journal.params({"lr": 0.1, "teacher": {"api_key": "canary"}})
    journal.tags({"recipe": "kd"})
    for step in range(1, 6):
        journal.metrics(step, {"train/loss": 1.0 / step, "train/lr": 0.5})
    journal.results(5, {"eval/language/student": 0.5})
    journal.results(5, {"eval/language/student": 0.75})
    journal.status("FINISHED")
    (run / "system").mkdir()
    sample = {"kind": "metric", "step": 1, "time_ms": 1_700_000_000_000, "values": {"cpu_utilization_percentage": 50.0}}
    (run / "system" / "node-1.jsonl").write_text(json.dumps(sample) + "\n")
    return run


def test_tensorboard_shows_every_point_once_with_its_time(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # again: it replaces, it does not add
        folder = export_journal(tracked, "tensorboard")
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        found = [(e.wall_time, e.step, tag, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        wanted = [(time_ms / 1000, step, name, value) for time_ms, step, name, value in points(tracked)]
        assert sorted(found) == [(time, step, name, pytest.approx(value)) for time, step, name, value in sorted(wanted)]
    assert len([name for _, _, name, _ in wanted]) == 12 and b"canary" not in b"".join(p.read_bytes() for p in folder.iterdir())


def stored_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which an offline run is: blocks of 32 KiB, after a header of 7 bytes."""
    at, whole = 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.system
def test_weights_and_biases_keeps_every_point_with_its_time(tracked: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(2):
        folder = export_journal(tracked, "wandb")
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        found = []
        for data in stored_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.history.item:
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                found += [(row["_timestamp"], row["step"], name, value) for name, value in row.items() if "/" in name]
        wanted = [(time_ms / 1000, step, name, value) for time_ms, step, name, value in points(tracked)]
        assert sorted(found) == sorted(wanted)
    assert b"canary" not in file.read_bytes()


def test_what_lies_there_is_not_overwritten(tracked: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds something else"):
        export_journal(tracked, "tensorboard", tmp_path / "mine")
    with pytest.raises(InputError, match="no run folder"):
        export_journal(tmp_path / "mine", "tensorboard")
