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


def alone(body: str, limit_s: float) -> tuple[int, str]:
    """Exit code and words of a process that a watchdog looks after."""
    imports = "import re, time\nfrom speechkd.train.watchdog import Watchdog"
    code = f"{imports}\nwith Watchdog({limit_s}, rank=3) as dog:\n    {body}\nprint('left')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_a_rank_that_hangs_ends_the_run_and_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert run_ranks([STALLING, str(LIMIT_S), "4"], 2).code == EXIT_FAILED
    took, message = time.monotonic() - began, capfd.readouterr().err
    assert took < 300, "it would hang for ever"
    line = r"error on rank (\d): it has stalled: (`\w+` of step \d+) has taken \d+ s, more than train\.stall_s \(8 s\)"
    stalled = dict(re.findall(line, message))
    assert set(stalled.items()) <= {("0", "`all_reduce` of step 4"), ("1", "`data` of step 4")} and stalled, message
    frames = {"0": "in sum_over_ranks", "1": "in read_next"}
    assert all(frames[rank] in message for rank in stalled) and "all ranks were ended" in message, message


def test_a_rank_that_holds_the_interpreter_is_ended_too() -> None:
    code, message = alone("dog.enter(7, 'data'); re.match(r'(a+)+$', 'a' * 64 + 'b')", 4)
    assert code == EXIT_FAILED and "Timeout" in message and "re/__init__.py" in message and "left" not in message


def test_many_short_acts_are_no_stall_and_before_the_first_nothing_is() -> None:
    code, message = alone("time.sleep(4.5)\n    for step in range(10): dog.enter(step, 'data'); time.sleep(0.5)", 4)
    assert (code, message) == (0, "left\n")
