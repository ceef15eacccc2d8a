"""A signal to stop is acknowledged at once, whatever the rank is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

BUSY = """
import hashlib, sys
from speechkd.train.preempt import PreemptionFlag
flag = PreemptionFlag(tells=True)
flag.last_step = lambda: {step}
print("up", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # one call of many minutes, like a kernel or a collective: no handler of Python's runs
"""


@pytest.mark.parametrize(
    ("step", "sent", "line"),
    [
        (91, signal.SIGINT, "train: stopping after step 91, with a checkpoint; Ctrl-C again ends at once"),
        (None, signal.SIGTERM, "train: stopping after the first step, with a checkpoint (SIGTERM)"),
    ],
)
def test_the_line_comes_in_the_middle_of_a_long_call(step: int | None, sent: signal.Signals, line: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY.format(step=step)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None and process.stdout.readline() == "up\n"
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(sent)
        assert process.stderr.readline() == f"{line}\n"
        assert time.monotonic() - began < 3 and process.poll() is None
    finally:
        process.kill()
        process.communicate()
