"""The launcher with real torchrun, real ranks and real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkd.cluster.local import run_ranks
from speechkd.core.errors import EXIT_REQUEUE, InputError

WORKER = str(Path(__file__).with_name("worker.py"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_ranks_run_and_an_old_requeue_note_does_not_count(tmp_path: Path, ranks: int) -> None:
    (tmp_path / "requeue.json").write_text("{}")
    assert run_ranks([WORKER, "fine", str(tmp_path)], ranks, tmp_path).code == 0
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    found = {p.name: p.read_text() for p in tmp_path.glob("rank-*")}
    assert found == {f"rank-{r}": f"{ranks} {os.environ.get('OMP_NUM_THREADS', threads)}" for r in range(ranks)}


def start(what: str, folder: Path, ranks: int) -> subprocess.Popen[bytes]:
    """`run_ranks` in a process of its own, as the command line runs it; returns when all ranks are in their loop."""
    code = f"import sys; from pathlib import Path; from speechkd.cluster.local import run_ranks; sys.exit(run_ranks({[WORKER, what, str(folder)]!r}, {ranks}, Path({str(folder)!r})).code)"  # noqa: E501
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(folder.glob("rank-*"))) < ranks:
        assert process.poll() is None and time.monotonic() < deadline, "the ranks did not come up"
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_a_preempted_run_ends_at_a_boundary_and_asks_to_be_requeued(tmp_path: Path, sent: signal.Signals) -> None:
    process = start("preempt", tmp_path, 2)
    process.send_signal(sent)
    assert process.wait(20) == EXIT_REQUEUE


def test_a_notice_that_comes_before_the_workers_listen_is_not_lost(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, threading
from pathlib import Path
from speechkd.cluster.local import run_ranks
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()  # torchrun itself is still importing
sys.exit(run_ranks({[WORKER, "preempt", str(tmp_path)]!r}, 1, Path({str(tmp_path)!r})).code)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == EXIT_REQUEUE


def test_when_one_rank_is_killed_all_end_quickly(tmp_path: Path) -> None:
    process = start("die", tmp_path, 2)
    began = time.monotonic()
    assert process.wait(30) == 1
    assert time.monotonic() - began < 15


@pytest.mark.slow
def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    process = start("preempt", tmp_path, 1)
    process.kill()
    deadline = time.monotonic() + 20
    while not (tmp_path / "requeue.json").exists():  # the agent passes its own end on as SIGTERM, and the worker stops in order
        assert time.monotonic() < deadline, "the worker runs on"
        time.sleep(0.1)


def test_the_first_error_of_any_rank_is_the_reason_and_the_last_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = run_ranks([WORKER, "fail", str(tmp_path)], 2, tmp_path)
    assert ended == (1, f"rank 1: RuntimeError: the first of all (traceback: {tmp_path}/errors/rank-00001.txt)")
    assert capfd.readouterr().err.splitlines()[-1] == f"error: {ended.reason}"
    assert "RuntimeError: the first" in (tmp_path / "errors/rank-00001.txt").read_text()


@pytest.mark.slow
def test_a_second_interrupt_ends_ranks_that_do_not_stop(tmp_path: Path) -> None:
    process = start("deaf", tmp_path, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None, "the first one waits for the end of the step"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 1


def test_a_users_error_keeps_its_exit_code(tmp_path: Path) -> None:
    assert run_ranks([WORKER, "input", str(tmp_path)], 1, tmp_path).code == 2


def test_no_rank_is_refused() -> None:
    with pytest.raises(InputError, match="at least one rank"):
        run_ranks(["-m", "nothing"], 0)
