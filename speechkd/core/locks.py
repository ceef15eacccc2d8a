"""Locks between processes: flock, or a file that names its holder where the file system has no flock (Lustre without it, some mounts)."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from speechkd.core.errors import InputError
from speechkd.core.lock_file import LockFile

POLL_S, FOREVER = 0.2, float("inf")
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What flock answers where a file system has no locks: Lustre without the mount option `flock`, NFS without a lock daemon"""


@contextmanager
def exclusive(path: Path, wait_s: float, busy: str) -> Iterator[None]:
    """Hold the lock file `path` alone; it is freed when the process dies.

    Raises InputError with `busy`, and which process on which host holds it, after `wait_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream, _held(stream, path, wait_s) as (held, fallback):
        if not held:
            stream.seek(0)
            holder = fallback.holder() if fallback else stream.read(200).strip()
            raise InputError(f"{busy} ({holder})" if holder else busy)
        stream.truncate(0)
        stream.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
        stream.flush()
        yield


@contextmanager
def claimed(path: Path, wait: bool = False, wait_s: float = 0.0) -> Iterator[bool]:
    """Try for `wait_s` seconds to hold the lock file `path` during the block; yields whether it is held. With `wait`, until it is free.

    Only saves two workers from doing the same work: where there is no flock, a holder that has been silent for minutes on another host is
    taken to be gone, so both results must be correct.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream, _held(stream, path, FOREVER if wait else wait_s, even_if_silent=True) as (held, _):
        yield held


@contextmanager
def _held(stream: IO[str], path: Path, wait_s: float, even_if_silent: bool = False) -> Iterator[tuple[bool, LockFile | None]]:
    """Whether the lock was got within `wait_s`, and the lock file that stands in for flock, if one does."""
    end = time.monotonic() + wait_s
    operation = fcntl.LOCK_EX if wait_s == FOREVER else fcntl.LOCK_EX | fcntl.LOCK_NB
    fallback: LockFile | None = None
    while True:
        try:
            if fallback is None:
                fcntl.flock(stream, operation)
                held = True
            else:
                held = fallback.acquire(even_if_silent)
        except BlockingIOError:
            held = False
        except OSError as error:
            if fallback is not None or error.errno not in NO_LOCKS:
                raise
            fallback = LockFile(path)
            continue
        if held or time.monotonic() >= end:
            break
        time.sleep(POLL_S)
    try:
        yield held, fallback
    finally:
        if held and fallback is not None:
            fallback.release()
