"""How a training ends is said once, at the end, and stands wherever somebody will look for it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkd.core.files import read_json_lines
from speechkd.stages.progress import run_state
from speechkd.tracking.journal import JOURNAL, read_journal
from tests.e2e.conftest import ROOT, losses, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]


def begin(workshop: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "speechkd", "train", workshop / "recipe.yaml", "--set", "train.checkpoint_every=4", *words]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def last_status(run: Path) -> tuple[str, str]:
    record = [record for record in read_journal(run / JOURNAL) if record["kind"] == "status"][-1]
    return record["status"], record.get("reason", "")


def test_an_interrupt_is_answered_at_once_and_a_second_one_ends_at_once(workshop: Path) -> None:
    """Both leave exit code 75, KILLED and a run that goes on."""
    run = workshop / "runs" / "interrupted"
    process = begin(workshop, "--set", "name=interrupted")
    wait_for(lambda: max(losses(run), default=0) >= 2 or process.poll() is not None, 500)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith("train: stopping"))
    answered = time.monotonic() - began
    assert "train: stopping after step" in line and "Ctrl-C again ends at once" in line and answered < (1 if os.getloadavg()[0] < 4 else 10)
    process.communicate(timeout=200)
    stopped = max(losses(run))
    assert process.returncode == 75 and f"after step {stopped}," in line and last_status(run) == ("KILLED", "stopped after a checkpoint")
    again = begin(workshop, "--set", "name=interrupted")
    wait_for(lambda: max(losses(run), default=0) > stopped or again.poll() is not None, 500)
    again.send_signal(signal.SIGINT)
    time.sleep(0.15)  # two at once are one to Python
    again.send_signal(signal.SIGINT)
    _, said = again.communicate(timeout=200)
    assert again.returncode == 75 and last_status(run)[0] == "KILLED" and "is whole; the same command continues" in said
    assert last_status(run)[1].startswith("ended at once by Ctrl-C") and run_state(run).reason == last_status(run)[1]


def test_the_first_error_of_any_rank_is_the_last_line_and_the_reason_everywhere(workshop: Path, tmp_path: Path) -> None:
    shutil.copytree(workshop / "data", tmp_path / "data")
    for tar in (tmp_path / "data/tiny/v1/audio").glob("*.tar"):
        data = bytearray(tar.read_bytes())
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        tar.write_bytes(data)
    run = tmp_path / "spoilt"
    process = begin(workshop, "--set", "name=spoilt", "--set", f"runs={tmp_path}", "--set", f"data.root={tmp_path}/data", "--ranks", 2)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("error: rank ") and ".tar: member `" in last and "Traceback" not in said, said[-3000:]
    reason = last.removeprefix("error: ")
    assert last_status(run) == ("FAILED", reason) and read_json_lines(run / "restarts.jsonl")[-1]["reason"] == reason
    tags = {name: value for record in read_journal(run / JOURNAL) if record["kind"] == "tag" for name, value in record["values"].items()}
    assert tags["reason"] == reason and reason in str(run_state(run).failure)
    assert 1 <= len(list((run / "errors").glob("rank-*.json"))) <= 2
