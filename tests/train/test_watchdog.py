"""A rank that hangs is ended, and says where; one that is only slow is left alone."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkd.cluster.local import run_ranks
from speechkd.core.errors import EXIT_FAILED

STALLING = str(Path(__file__).with_name("stalling.py"))
LIMIT_S = 8
"""Long enough for a busy machine to get through four steps that do nothing"""


def alone(body: str, limit_s: float, stacks: Path | None = None, world: int = 1) -> tuple[int, str]:
    """Exit code and words of a process that a watchdog looks after."""
    imports = "import os, re, time\nfrom pathlib import Path, PosixPath\nfrom speechkd.train.watchdog import Watchdog"
    code = f"{imports}\nwith Watchdog({limit_s}, 3, {stacks!r}, {world}) as dog:\n    {body}\nprint('left')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_a_rank_that_hangs_ends_the_run_and_says_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert run_ranks([STALLING, str(LIMIT_S), "4", str(tmp_path / "stacks")], 2).code == EXIT_FAILED
    took, message = time.monotonic() - began, capfd.readouterr().err
    assert took < 300, "it would hang for ever"
    line = r"error on rank (\d): it has stalled: (`\w+` of step \d+) has taken \d+ s, more than train\.stall_s \(8 s\)"
    stalled = dict(re.findall(line, message))
    assert set(stalled.items()) <= {("0", "`all_reduce` of step 4"), ("1", "`data` of step 4")} and stalled, message
    frames = {"0": "in sum_over_ranks", "1": "in read_next"}
    assert all(frames[rank] in message for rank in stalled) and "all ranks were ended" in message, message
    for rank, frame in frames.items():  # of both, whichever of them saw the stall first
        stacks = (tmp_path / f"stacks/rank-0000{rank}.txt").read_text()
        assert stacks.startswith(f"rank {rank} of 2 at `") and frame in stacks and "stalled" in stacks, stacks
    assert f"the stacks of all ranks that still run are in `{tmp_path / 'stacks'}`" in message


def test_a_rank_that_holds_the_interpreter_is_ended_too() -> None:
    code, message = alone("dog.enter(7, 'data'); re.match(r'(a+)+$', 'a' * 64 + 'b')", 4)
    assert code == EXIT_FAILED and "Timeout" in message and "re/__init__.py" in message and "left" not in message


def test_many_short_acts_are_no_stall_and_before_the_first_nothing_is() -> None:
    code, message = alone("time.sleep(4.5)\n    for step in range(10): dog.enter(step, 'data'); time.sleep(0.5)", 4)
    assert (code, message) == (0, "left\n")


def test_a_rank_answers_a_request_of_another_node_and_goes_on(tmp_path: Path) -> None:
    """A request of an earlier start is not answered. Nothing is left by a rank whose stacks nobody wanted."""
    request = "(Path(r'%s') / 'request').write_text('rank 0')" % tmp_path
    code, message = alone(f"dog.enter(7, 'forward'); time.sleep(1); {request}; time.sleep(5)", 12, tmp_path, 2)
    stacks = (tmp_path / "rank-00003.txt").read_text()
    assert (code, message) == (0, "left\n") and "at `forward` of step 7" in stacks and "another rank has stalled" in stacks
    (tmp_path / "rank-00003.txt").unlink()
    assert alone("dog.enter(7, 'forward'); time.sleep(4)", 12, tmp_path, 2) == (0, "left\n")
    assert [path.name for path in tmp_path.iterdir()] == ["request"]


def test_a_rank_that_holds_the_interpreter_leaves_its_stacks_in_the_folder(tmp_path: Path) -> None:
    code, _ = alone("dog.enter(7, 'data'); re.match(r'(a+)+$', 'a' * 64 + 'b')", 4, tmp_path)
    assert code == EXIT_FAILED and "re/__init__.py" in (tmp_path / "rank-00003.txt").read_text()
