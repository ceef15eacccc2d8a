"""Restart or stop: from the history and the newest checkpoint alone, in one line that says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from speechkd.core.files import read_json_lines
from speechkd.stages.restart import RESTARTS, decide, main, read_history, record_end, record_start
from speechkd.tracking.journal import JOURNAL, Journal, read_journal


def start(step: int) -> dict[str, Any]:
    return {"event": "start", "step": step}


def end(step: int, code: int, reason: str = "rank 1 ended with SIGKILL") -> dict[str, Any]:
    return {"event": "end", "step": step, "code": code, "reason": reason}


@pytest.mark.parametrize(
    ("history", "code", "step", "answer"),
    [
        ([start(800), end(1200, 75)], 75, 1200, "restart: exit 75 (stopped cleanly) at step 1200, 400 steps since the last start"),
        ([start(0), end(40, 1)], 1, 40, "restart: exit 1 (rank 1 ended with SIGKILL) at step 40, 40 steps since the last start"),
        ([start(0)], 137, 40, "restart: exit 137 (no launcher lived to say why) at step 40, 40 steps since the last start"),
        ([start(0), end(50, 0)], 0, 50, "stop: finished at step 50"),
        ([start(0), end(0, 2, "no column")], 2, 0, "stop: exit 2 (no column): the input is wrong, and would be again"),
        ([], 2, 0, "stop: exit 2: the input is wrong, and would be again"),
        (
            [start(0), end(0, 1)],
            1,
            0,
            "restart: exit 1 (rank 1 ended with SIGKILL) at step 0 without a new step, 0 of 3 restarts from there used",
        ),
        (
            [start(800)] + [end(1200, 1), start(1200)] * 2 + [end(1200, 1)],
            1,
            1200,
            "restart: exit 1 (rank 1 ended with SIGKILL) at step 1200 without a new step, 2 of 3 restarts from there used",
        ),
        (
            [start(800)] + [end(1200, 1), start(1200)] * 3 + [end(1200, 1)],
            1,
            1200,
            "stop: 3 restarts without a new step since step 1200 (codes 1, 1, 1; last: exit 1 (rank 1 ended with SIGKILL))",
        ),
        (
            [start(0)] + [end(0, 1), start(0)] * 3 + [end(0, 1)],
            1,
            0,
            "stop: 3 restarts without a new step since step 0 (codes 1, 1, 1; last: exit 1 (rank 1 ended with SIGKILL))",
        ),
        (  # SLURM started it again each time, and nobody lived to write an end
            [start(0), start(40), start(40), start(40)],
            137,
            40,
            "stop: 3 restarts without a new step since step 40 (codes 137; last: exit 137 (no launcher lived to say why))",
        ),
        (  # it fails before a start is written
            [{"event": "restart", "step": 0, "code": 1, "reason": ""}] * 3,
            1,
            0,
            "stop: 3 restarts without a new step since step 0 (codes 1, 1, 1; last: exit 1)",
        ),
        (  # a new step sets the count back
            [start(0)] + [end(40, 1), start(40)] * 3 + [end(60, 1)],
            1,
            60,
            "restart: exit 1 (rank 1 ended with SIGKILL) at step 60, 20 steps since the last start",
        ),
    ],
)
def test_a_decision_states_its_evidence(history: list[dict[str, Any]], code: int, step: int, answer: str) -> None:
    assert str(decide(history, code, step, 3)) == answer


def test_a_job_that_fails_at_once_ends_after_three_restarts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the batch script runs it; the reason is in the history and in the journal."""
    Journal(tmp_path / JOURNAL).close()
    answers = []
    while not answers or answers[-1] == 0:
        record_start(tmp_path, 0, 2, 2)
        record_end(tmp_path, 0, 1, "node 1 (n1): rank 1 ended with SIGBUS")
        answers.append(main([str(tmp_path), "1"]))
    assert answers == [0, 0, 0, 1]
    said = "3 restarts without a new step since step 0 (codes 1, 1, 1; last: exit 1 (node 1 (n1): rank 1 ended with SIGBUS))"
    assert capsys.readouterr().out.splitlines()[-1] == f"stop: {said}"
    assert [event["event"] for event in read_json_lines(tmp_path / RESTARTS)] == ["start", "end", "restart"] * 3 + ["start", "end", "stop"]
    (tag,) = [record for record in read_journal(tmp_path / JOURNAL) if record["kind"] == "tag"]
    assert tag["values"] == {"stopped": said}


def test_the_launchers_word_is_enough_and_torch_is_not_loaded(tmp_path: Path) -> None:
    """Between the last checkpoint and the time limit there are seconds: nothing is read again."""
    record_start(tmp_path, 30, 2, 1)
    record_end(tmp_path, 40, 75, "stopped at a step boundary")
    code = f"import sys; from speechkd.stages.restart import main; print(main([{str(tmp_path)!r}, '75']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["restart: exit 75 (stopped cleanly) at step 40, 10 steps since the last start", "0 False"]


def test_a_torn_history_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    assert record_start(tmp_path, 0, 2, 1) == 0
    with (tmp_path / RESTARTS).open("ab") as stream:
        stream.write(b'{"event": "start", "st')
    record_end(tmp_path, 20, 1, "a line\u2028of one")
    assert record_start(tmp_path, 20, 2, 1) == 1
    with (tmp_path / RESTARTS).open("ab") as stream:
        stream.write(b'{"event": "end", "step": "x", "code": 1}\n[]\n\xff\n')
    assert [(event["event"], event["step"]) for event in read_history(tmp_path)] == [("start", 0), ("end", 20), ("start", 20)]
