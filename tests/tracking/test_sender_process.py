"""The sender process against real MLflow stores and servers: kills and outages lose nothing, and training never waits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkd.core.files import read_json
from speechkd.tracking.journal import JOURNAL, read_journal
from speechkd.tracking.mlflow_sender import STATE, sync
from speechkd.tracking.sampler import node_label
from tests.tracking.server import Server, wait_for
from tests.tracking.store import Store, only_run, wanted

NODE = node_label(socket.gethostname())
TRAINER = """
import sys, time
from pathlib import Path
from speechkd.tracking.journal import Journal
from speechkd.tracking import TrackingConfig
from speechkd.tracking.sender_process import start_sender

run, uri, first, last, end = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
sender = start_sender(run, TrackingConfig(uri=uri, experiment="tests"))
print(sender.pid, flush=True)
journal = Journal(run / "journal.jsonl")
journal.status("RUNNING")
journal.params({"lr": f"1e-{first}", "start": 0})
for step in range(first, last):
    journal.metrics(step, {"train/loss": 1.0 / (step + 1), "train/lr": 0.5})
print("trained", flush=True)
if end == "hang":
    time.sleep(600)
journal.status(end)
"""


def test_killed_training_is_reported_and_its_resume_goes_into_the_same_run(run: Path, store: Store) -> None:
    command = [sys.executable, "-c", TRAINER, str(run), store.uri]
    first = subprocess.Popen([*command, "0", "40", "hang"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    sender = int(first.stdout.readline())
    assert first.stdout.readline() == "trained\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    with (run / JOURNAL).open("ab") as journal:
        journal.write(b'{"kind":"metric","step":40,"time_')  # the kill tore a line
    resumed = subprocess.run([*command, "30", "60", "FINISHED"], stdout=subprocess.PIPE, text=True, check=True)
    for pid in (sender, int(resumed.stdout.split()[0])):
        wait_for(pid, 60)
    run_id, status, _, _ = only_run(store, run)
    assert status == "FINISHED"
    assert [step for name, step, _, _ in store.points(run_id) if name == "train/loss"] == list(range(60))
    assert store.points(run_id) == wanted(run) and store.params(run_id) == {"lr": "1e-0", "start": "0"}
    assert "keep their first value: lr" in (run / "sender.log").read_text()


@pytest.mark.system
def test_an_outage_of_the_server_loses_and_doubles_nothing(run: Path, server: Server) -> None:
    server.start()
    command = [sys.executable, "-c", TRAINER, str(run), server.uri]
    first = subprocess.Popen([*command, "0", "1500", "hang"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    sender = int(first.stdout.readline())
    assert first.stdout.readline() == "trained\n"
    limit = time.monotonic() + 60
    while read_json(run / STATE)["offset"] < (run / JOURNAL).stat().st_size:
        assert time.monotonic() < limit, (run / "sender.log").read_text()
        time.sleep(0.2)
    run_id, status, *_ = only_run(server.store, run)
    assert status == "RUNNING"
    while f"system/{NODE}/cpu_utilization_percentage" not in server.store.names(run_id):  # the machine is looked at a little later
        assert time.monotonic() < limit, (run / "sender.log").read_text()
        time.sleep(0.2)
    os.kill(sender, signal.SIGKILL)  # a sender may die too
    server.kill()
    first.send_signal(signal.SIGKILL)
    first.wait()

    resumed = subprocess.run([*command, "1000", "3000", "FINISHED"], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    began = time.monotonic()
    wait_for(int(resumed.stdout.split()[0]), 40)
    assert time.monotonic() - began < 31
    log = (run / "sender.log").read_text()
    assert log.count("cannot send now") == 1 and "speechkd sync" in log
    with pytest.raises(ConnectionError):
        sync(run)

    server.start()
    assert sync(run) == 3000
    run_id, status, start, _ = only_run(server.store, run)
    first = next(read_journal(run / JOURNAL))["time_ms"]
    assert status == "FINISHED" and abs(start - first) < 60_000  # the sender attaches before the first record
    assert server.store.points(run_id) == wanted(run) and len(wanted(run)) == 6000
    assert {f"system/{NODE}/cpu_utilization_percentage", f"system/{NODE}/run_memory_usage_megabytes"} <= server.store.names(run_id)
