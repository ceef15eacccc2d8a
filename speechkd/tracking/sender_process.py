"""Forwards a run's journal from a separate process, so that a dead or slow server never affects training.

`python -m speechkd.tracking.sender_process RUN_DIR --parent PID` tails the journal while PID is alive: it sends the records to MLflow,
samples this node's CPU, memory and GPUs, and writes the Prometheus text file. Then it sends the rest, and exits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from speechkd.core.log import say
from speechkd.tracking import TrackingConfig
from speechkd.tracking.journal import JOURNAL, process_start_time, records_from
from speechkd.tracking.mlflow_client import one_line
from speechkd.tracking.mlflow_sender import GRACE_S, POLL_S, Sender, bytes_behind, sender_lock, set_target
from speechkd.tracking.prometheus import MetricsFile
from speechkd.tracking.sampler import NodeSamples, node_name

LOG = "sender.log"
LONGEST_PAUSE_S, LONGEST_PAUSE_AT_END_S = 30.0, 4.0
"""Longest pauses between retries: while training runs, and after it"""
SEND_EVERY_S, METRICS_EVERY_S = 3.0, 5.0
"""Seconds between batches to a server that answers, and between writes of the Prometheus file"""


def start_sender(run_dir: Path, tracking: TrackingConfig) -> subprocess.Popen[bytes]:
    """Start the sender for this run in the background at low priority; it logs to `RUN_DIR/sender.log`.

    A resumed run continues its MLflow run through `RUN_DIR/mlflow.json`; another uri or experiment gets a new run with the whole journal.
    Without a uri it only samples this node and writes the Prometheus file.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if tracking.uri:
        set_target(run_dir, tracking.uri, tracking.experiment)
    journal = run_dir / JOURNAL
    since = journal.stat().st_size if journal.exists() else 0
    options = ["--parent", str(os.getpid()), "--since", str(since), *(["--mlflow"] if tracking.uri else [])]
    options += ["--prometheus-dir", tracking.prometheus_dir] if tracking.prometheus_dir else []
    command = [sys.executable, "-m", "speechkd.tracking.sender_process", str(run_dir), *options]
    with (run_dir / LOG).open("ab") as log:
        # in its own session: Ctrl-C ends training, but the sender must still report the final status
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def follow(run_dir: Path, parent: int, since: int, mlflow: bool, prometheus_dir: str | None) -> None:
    """Forward new records until process `parent` is gone or a final status appears after byte `since`; then finish within GRACE_S."""
    started = process_start_time(parent)
    with sender_lock(run_dir, wait_s=float("inf")):  # an earlier sender may still be sending the end of the interrupted run
        watch, samples = _StatusWatch(run_dir / JOURNAL, since), NodeSamples(run_dir, node_name(), parent)
        sending = _Sending(run_dir) if mlflow else None
        metrics, next_metrics = MetricsFile(run_dir, prometheus_dir), time.monotonic() + POLL_S
        while True:
            alive = started is not None and process_start_time(parent) == started
            if ended := watch.final() or not alive:
                if not watch.final():
                    metrics.end("FAILED")
            else:
                samples.tick()
            done = sending.work(alive, ended) if sending else ended
            if done or time.monotonic() >= next_metrics:
                metrics.write(bytes_behind(run_dir) if sending else None)
                next_metrics = time.monotonic() + METRICS_EVERY_S
            if done:
                return
            time.sleep(POLL_S)


class _Sending:
    """Sends to MLflow when it is time to try; waits longer after each failure."""

    def __init__(self, run_dir: Path) -> None:
        self._sender, self._run_dir = Sender(run_dir), run_dir
        self._pause, self._next_try, self._deadline, self._down = POLL_S, 0.0, float("inf"), False

    def work(self, alive: bool, ended: bool) -> bool:
        """Try to send, if it is time; True once all is sent after the run's end, or the time for that is up."""
        if ended and self._deadline == float("inf"):
            self._deadline, self._next_try = time.monotonic() + GRACE_S, 0.0
            self._sender.give_up_at = self._deadline
        if time.monotonic() >= self._next_try:
            if self._send(alive):
                return True
            self._next_try = time.monotonic() + self._pause
        if time.monotonic() > self._deadline:
            say(f"mlflow: not all could be sent; `speechkd sync {self._run_dir}` sends the rest")
            return True
        return False

    def _send(self, alive: bool) -> bool:
        try:
            if not self._sender.attached:
                self._sender.attach(running=alive)
            done = self._sender.drain(max(self._deadline, time.monotonic() + 5))
            if done and self._deadline < float("inf"):
                self._sender.finish(self._sender.final_status(alive))
                return True
            self._pause, self._down = SEND_EVERY_S, False
        except Exception as error:  # any error of server, network or client: the journal is safe, so wait and retry
            if not self._down:
                say(f"mlflow: cannot send now, will keep trying: {one_line(error)}")
            self._pause, self._down = min(2 * self._pause, LONGEST_PAUSE_S if alive else LONGEST_PAUSE_AT_END_S), True
        return False


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
    parser = argparse.ArgumentParser(prog="python -m speechkd.tracking.sender_process", description="forward a run's journal")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process id of the training")
    parser.add_argument("--since", type=int, default=0, help="a final status before this byte belongs to an earlier start")
    parser.add_argument("--mlflow", action="store_true", help="send to the server that RUN_DIR/mlflow.json names")
    parser.add_argument("--prometheus-dir", help="folder of a node exporter's textfile collector")
    args = parser.parse_args()
    os.nice(19)  # training comes first
    follow(args.run_dir, args.parent, args.since, args.mlflow, args.prometheus_dir)


if __name__ == "__main__":
    main()
