"""Sends a run's journal to MLflow from a separate process, so that a dead or slow server never affects training.

`python -m speechkd.tracking.mlflow_process RUN_DIR --parent PID` tails the journal while PID is alive, sends the rest, and exits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from speechkd.core.log import say
from speechkd.tracking.journal import JOURNAL, process_start_time, records_from
from speechkd.tracking.mlflow_client import one_line
from speechkd.tracking.mlflow_sender import GRACE_S, POLL_S, Sender, sender_lock, set_target
from speechkd.tracking.system import SystemMeter

LOG = "mlflow_sender.log"
LONGEST_PAUSE_S, LONGEST_PAUSE_AT_END_S = 30.0, 4.0
"""Longest pauses between retries: while training runs, and after it"""
FIRST_SAMPLE_S, SYSTEM_EVERY_S = 2.0, 15.0
"""Seconds to the first measurement of GPU, CPU and memory, and between later ones"""


def start_sender(run_dir: Path, uri: str, experiment: str) -> subprocess.Popen[bytes]:
    """Start the sender for this run in the background at low priority; it logs to `RUN_DIR/mlflow_sender.log`.

    A resumed run continues its MLflow run through `RUN_DIR/mlflow.json`; another uri or experiment gets a new run with the whole journal.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    set_target(run_dir, uri, experiment)
    journal = run_dir / JOURNAL
    since = journal.stat().st_size if journal.exists() else 0
    options = ["--parent", str(os.getpid()), "--since", str(since)]
    command = [sys.executable, "-m", "speechkd.tracking.mlflow_process", str(run_dir), *options]
    with (run_dir / LOG).open("ab") as log:
        # in its own session: Ctrl-C ends training, but the sender must still report the final status
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def follow(run_dir: Path, parent: int, since: int) -> None:
    """Send new journal records until process `parent` is gone or a final status appears after byte `since`; then finish within GRACE_S."""
    started = process_start_time(parent)
    with sender_lock(run_dir, wait_s=float("inf")):  # an earlier sender may still be sending the end of the interrupted run
        sender, watch = Sender(run_dir), _StatusWatch(run_dir / JOURNAL, since)
        meter, samples = SystemMeter(parent), 0
        pause, next_try, next_sample = POLL_S, 0.0, time.monotonic() + FIRST_SAMPLE_S
        deadline, down = float("inf"), False
        while True:
            alive = started is not None and process_start_time(parent) == started
            if (watch.final() or not alive) and deadline == float("inf"):
                deadline, next_try = time.monotonic() + GRACE_S, 0.0
            if alive and time.monotonic() >= next_sample:
                samples, next_sample = samples + 1, time.monotonic() + SYSTEM_EVERY_S
                sender.add_system_sample(meter.sample(), samples)
            if time.monotonic() >= next_try:
                try:
                    if not sender.attached:
                        sender.attach(running=alive)
                    done = sender.drain(max(deadline, time.monotonic() + 5))
                    if done and deadline < float("inf"):
                        sender.finish(sender.final_status(alive))
                        return
                    pause, down = POLL_S, False
                except Exception as error:  # any error of server, network or client: the journal is safe, so wait and retry
                    if not down:
                        say(f"mlflow: cannot send now, will keep trying: {one_line(error)}")
                    pause, down = min(2 * pause, LONGEST_PAUSE_S if alive else LONGEST_PAUSE_AT_END_S), True
                next_try = time.monotonic() + pause
            if time.monotonic() > deadline:
                say(f"mlflow: not all could be sent; `speechkd sync {run_dir}` sends the rest")
                return
            time.sleep(POLL_S)


class _StatusWatch:
    """Checks whether the journal's latest status after byte `since` is final. Reads each byte once; needs no server."""

    def __init__(self, journal: Path, since: int) -> None:
        self._journal, self._offset, self._final = journal, since, False

    def final(self) -> bool:
        for record, self._offset in records_from(self._journal, self._offset):
            if record["kind"] == "status":
                self._final = record["status"] != "RUNNING"
        return self._final


def main() -> None:
    """Entry point of the sender process."""
    parser = argparse.ArgumentParser(prog="python -m speechkd.tracking.mlflow_process", description="forward a run's journal to MLflow")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process id of the training")
    parser.add_argument("--since", type=int, default=0, help="a final status before this byte belongs to an earlier start")
    args = parser.parse_args()
    os.nice(10)  # training comes first
    follow(args.run_dir, args.parent, args.since)


if __name__ == "__main__":
    main()
