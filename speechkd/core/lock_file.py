"""A lock where the file system has none: a file that names its holder, made by link(2), which is atomic on Lustre and NFS as well.

    <path>.held    JSON: host, pid and start of the holder, boot of its machine, SLURM job; touched every BEAT_S while it is held

Such a file outlives a killed holder. It is taken over where the holder is known to be gone: another boot of this machine, a process of this
boot that has ended, an earlier start of the same SLURM job. On another host nobody can know; there the
message gives the age of the last touch.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
import uuid
from pathlib import Path
from threading import Event, Thread
from typing import Any

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import canonical_json, read_json

BEAT_S = 10.0
SILENT_S = 120.0
"""Age of the last touch after which a holder on another host is probably gone"""
_BREAK_S = 10.0


class LockFile:
    """Held or not by this process."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".held")
        self._token = uuid.uuid4().hex
        self._stop = Event()
        self._beat = Thread(target=self._touch, name="lock-beat", daemon=True)

    def acquire(self, even_if_silent: bool = False) -> bool:
        """Try once; a file whose holder is known to be gone is replaced. `even_if_silent`: also one whose holder is probably gone."""
        held = _linked(self.path, _me(self._token)) or (self._free(even_if_silent) and self._take_over(even_if_silent))
        if held:
            self._beat.start()
        return held

    def release(self) -> None:
        """Give it up; a file that is no longer ours stays."""
        self._stop.set()
        if _read(self.path).get("token") == self._token:
            self.path.unlink(missing_ok=True)

    def holder(self) -> str:
        """Who holds it, in words, and what to do if that process is gone; empty if nobody does."""
        found = _read(self.path)
        if not found:
            return ""
        who = f"pid {found.get('pid')} on host {found.get('host')}"
        silent_s = self._silent_s()
        if silent_s < SILENT_S:
            return who
        return f"{who}, without a sign of life for {silent_s:.0f} s: if that process is gone, remove `{self.path}`"

    def _free(self, even_if_silent: bool) -> bool:
        holder, silent = _read(self.path), self._silent_s() >= SILENT_S
        return bool(holder) and (_gone(holder, silent) or (even_if_silent and silent))

    def _take_over(self, even_if_silent: bool) -> bool:
        """Replace a file whose holder is gone. One process at a time does so: the file that it judges is the file that it removes."""
        breaker = self.path.with_name(self.path.name + ".break")
        end = time.monotonic() + _BREAK_S
        while not _linked(breaker, _me(self._token)):
            if time.monotonic() > end:
                raise InputError(f"another process has been replacing a lock for {_BREAK_S:g} s: if it is gone, remove `{breaker}`")
            time.sleep(0.05)
        try:
            if self._free(even_if_silent):
                self.path.unlink(missing_ok=True)
            return _linked(self.path, _me(self._token))
        finally:
            breaker.unlink(missing_ok=True)

    def _silent_s(self) -> float:
        """Seconds since the holder's last touch, by the file server's own clock."""
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".now", dir=self.path.parent)
        os.close(handle)
        try:
            return max(0.0, os.stat(name).st_mtime - self.path.stat().st_mtime)
        except FileNotFoundError:
            return 0.0
        finally:
            os.unlink(name)

    def _touch(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _me(token: str) -> dict[str, Any]:
    """What a lock file says of its holder."""
    own = {
        "token": token,
        "host": socket.gethostname(),
        "boot": _boot(),
        "pids": _pid_space(),
        "pid": os.getpid(),
        "start": _start(os.getpid()),
    }
    names = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    return own | {name: os.environ[name] for name in names if name in os.environ}


def _gone(holder: dict[str, Any], silent: bool) -> bool:
    """Whether a holder is known to have ended."""
    me = _me("")
    same_job = all(holder.get(name) == me.get(name) for name in ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID"))
    if "SLURM_JOB_ID" in holder and same_job and _restarts(holder) < _restarts(me):
        return True  # SLURM starts a job again when all of its processes have ended
    if holder.get("host") != me["host"]:
        return False
    if holder.get("boot") != me["boot"]:
        return silent  # this machine was started again, or another one has its name
    return holder.get("pids") == me["pids"] and _start(holder.get("pid")) != holder.get("start")


def _restarts(holder: dict[str, Any]) -> int:
    return int(holder.get("SLURM_RESTART_COUNT") or 0)  # unset on the first run


def _linked(path: Path, holder: dict[str, Any]) -> bool:
    """Create `path` with its whole content at once; False if it exists."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        os.write(handle, canonical_json(holder).encode())
        os.fsync(handle)
        try:
            os.link(name, path)
        except FileExistsError:
            return os.stat(name).st_nlink == 2  # on NFS a link may have been made although its answer was lost
        return True
    finally:
        os.close(handle)
        os.unlink(name)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (FileNotFoundError, DataError):
        return {}
    return found if isinstance(found, dict) else {}


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _pid_space() -> str:
    """The namespace in which process ids mean something: containers on one machine have their own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _start(pid: object) -> str:
    """When a process started, in clock ticks since boot; empty for one that has ended, or waits for its parent to notice."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else numbers[18]
