"""One holder at a time, with flock and without: on Lustre mounted without it, and on NFSv4, which wants a file open for writing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.core.lock_file import LockFile, _me
from speechkd.core.locks import claimed, exclusive

HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
if sys.argv[2] == "without":
    def refuse(*_): raise OSError(errno.ENOSYS, "Function not implemented")
    fcntl.flock = refuse
from speechkd.core.locks import exclusive
with exclusive(Path(sys.argv[1]), 0.0, "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=[None, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK], ids=["flock", "ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system with flock, or one that answers with an error."""
    if request.param is None:
        return "with"

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return "without"


def test_a_lock_that_is_held_names_its_holder_and_a_killed_one_is_free(tmp_path: Path, locks: str) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path), locks], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"busy \\(pid {holder.pid} on host "), exclusive(path, 0.0, "busy"):
            pass
        with claimed(path) as mine:
            assert not mine
    finally:
        holder.kill()
        holder.wait()
    with exclusive(path, 0.0, "busy"):
        assert path.read_text().startswith(f"pid {os.getpid()} on host ")
        with claimed(path) as mine:
            assert not mine
    assert sorted(found.name for found in tmp_path.iterdir()) == ["lock"]


def test_of_many_that_find_a_dead_holder_one_gets_the_lock(tmp_path: Path) -> None:
    """All judge the same stale file at once; whoever comes later must not remove the new holder's."""
    code = HOLD.replace("time.sleep(60)", "time.sleep(0.5)").replace('0.0, "busy"', '30.0, "busy"')
    code = code.replace('print("held", flush=True)', "print(time.monotonic(), flush=True)").replace(
        "time.sleep(0.5)", "time.sleep(0.3); print(time.monotonic())"
    )
    (tmp_path / "lock.held").write_text(json.dumps(_holder(start="long ago")))
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock"), "without"], stdout=subprocess.PIPE) for _ in range(6)]
    times = sorted(tuple(map(float, process.communicate(timeout=60)[0].split())) for process in many)
    assert len(times) == 6 and all(end < begin for (_, end), (begin, _) in zip(times, times[1:], strict=False))
    assert sorted(found.name for found in tmp_path.iterdir()) == ["lock"]


def _holder(**changed: object) -> dict[str, object]:
    """What a lock file of this process says, changed."""
    return {**_me("another"), **changed}


@pytest.mark.parametrize(
    ("changed", "silent", "env", "free"),
    [
        ({}, False, {}, False),
        ({"start": "long ago"}, False, {}, True),  # the process id is another process's now
        ({"start": "long ago", "pids": "pid:[1]"}, False, {}, False),  # of another container: its ids mean nothing here
        ({"start": "long ago", "pids": "pid:[1]"}, True, {}, False),
        ({"boot": "another"}, False, {}, False),  # another machine of this name is alive
        ({"boot": "another"}, True, {}, True),
        ({"host": "node7"}, True, {}, False),
        ({"host": "node7", "SLURM_JOB_ID": "12"}, False, {"SLURM_JOB_ID": "12"}, False),  # another task of the same start
        ({"host": "node7", "SLURM_JOB_ID": "12"}, False, {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}, True),
        (
            {"host": "node7", "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"},
            True,
            {"SLURM_JOB_ID": "13", "SLURM_RESTART_COUNT": "2"},
            False,
        ),
    ],
)
def test_a_lock_is_taken_over_only_from_a_holder_that_is_known_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], silent: bool, env: dict[str, str], free: bool
) -> None:
    """Otherwise the message says which file to remove; who only wants to save work takes a silent one."""
    for name in ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "lock.held"
    path.write_text(json.dumps(_holder(**changed)))
    if silent:
        os.utime(path, (time.time() - 500, time.time() - 500))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    lock = LockFile(tmp_path / "lock")
    holder = lock.holder()
    assert (f"without a sign of life for 500 s: if that process is gone, remove `{path}`" in holder) == silent
    assert f"pid {os.getpid()} on host {changed.get('host', socket.gethostname())}" in holder
    assert lock.acquire() == free
    if not free and silent:
        assert lock.acquire(even_if_silent=True)


def test_a_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechkd.core.lock_file.BEAT_S", 0.05)
    lock = LockFile(tmp_path / "lock")
    assert lock.acquire()
    old = time.time() - 500
    os.utime(lock.path, (old, old))
    end = time.monotonic() + 10
    while lock.path.stat().st_mtime < old + 400:
        assert time.monotonic() < end, "no sign of life"
        time.sleep(0.02)
    lock.release()
    assert not lock.path.exists()
