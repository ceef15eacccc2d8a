"""What speechkd relies on in a shared folder: renames, syncs, locks, hard links, order of times. Seen from one process."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from speechkd.core.files import fsync_folder, write_text
from speechkd.stages.doctor.finding import Finding

CHECK = "shared folder"
SKEW_S, WRONG_S = 2.0, 60.0
"""Seconds between this clock and the file system's at which a warning is given, and at which ages of files mean nothing"""
NO_LOCKS = "mount with locks (`-o flock` on Lustre, `local_lock=none` on NFS)"


def check_shared_folder(folder: Path) -> list[Finding]:
    """Try each operation in a temporary folder inside `folder`."""
    try:
        with tempfile.TemporaryDirectory(prefix=".speechkd-doctor-", dir=folder) as name:
            here = Path(name)
            parts: tuple[Callable[[Path], Finding], ...] = (_rename, _sync, _lock, _hard_link, _times)
            return [_tried(part, here) for part in parts]
    except OSError as error:
        return [
            Finding(CHECK, "fail", f"`{folder}` cannot be written: {error.strerror}", "choose another folder, or have its rights changed")
        ]


def _tried(part: Callable[[Path], Finding], folder: Path) -> Finding:
    try:
        return part(folder)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        return Finding(CHECK, "fail", f"{part.__name__.strip('_').replace('_', ' ')}: {error.strerror} ({name})", "use another file system")


def _rename(folder: Path) -> Finding:
    """A rename over a file that someone reads: the reader keeps the old bytes, everyone else sees the new ones at once."""
    target = folder / "renamed"
    write_text(target, "old")
    with target.open(encoding="utf-8") as reader:
        write_text(target, "new")
        kept, seen = reader.read(), target.read_text(encoding="utf-8")
    left = [path.name for path in folder.iterdir() if path.name != target.name]
    if (kept, seen, left) != ("old", "new", []):
        text = f"a rename is not atomic: an open reader got `{kept}`, a new one `{seen}`"
        return Finding(CHECK, "fail", text, "published files could be read half written: use another file system")
    return Finding(CHECK, "ok", "renames are atomic")


def _sync(folder: Path) -> Finding:
    began = time.perf_counter()
    with (folder / "synced").open("wb") as stream:
        stream.write(b"x" * 4096)
        stream.flush()
        os.fsync(stream.fileno())
    fsync_folder(folder)
    return Finding(CHECK, "ok", f"fsync of file and folder in {1000 * (time.perf_counter() - began):.0f} ms")


def _lock(folder: Path) -> Finding:
    """flock, as two processes would use it; where the mount refuses it, a hard link serves as lock file."""
    path = folder / "lock"
    with path.open("a+") as first, path.open("a+") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            if _link_locks(folder):
                return Finding(CHECK, "warn", f"flock is refused ({name}); locks by hard link work, and are used", NO_LOCKS)
            return Finding(CHECK, "fail", f"flock is refused ({name}), and so are hard links: two runs could write one folder", NO_LOCKS)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding(CHECK, "ok", "flock holds")
    return Finding(CHECK, "fail", "flock was granted twice: two runs could write one folder", NO_LOCKS)


def _link_locks(folder: Path) -> bool:
    source, lock = folder / "link-source", folder / "link-lock"
    source.touch()
    try:
        os.link(source, lock)
    except OSError:
        return False
    try:
        os.link(source, lock)
    except FileExistsError:
        return True
    except OSError:
        return False
    return False


def _hard_link(folder: Path) -> Finding:
    source = folder / "linked"
    source.write_text("x", encoding="utf-8")
    os.link(source, folder / "link")
    links = source.stat().st_nlink
    if links != 2:
        return Finding(CHECK, "warn", f"a hard link counts {links} names instead of 2", "create-if-absent may not be safe here")
    return Finding(CHECK, "ok", "hard links count")


def _times(folder: Path) -> Finding:
    """Times of modification follow the order of writing, and agree with this machine's clock."""
    stamps = []
    for number in range(3):
        path = folder / f"time-{number}"
        path.write_text(str(number), encoding="utf-8")
        stamps.append(path.stat().st_mtime_ns)
        time.sleep(0.02)
    if stamps != sorted(stamps):
        return Finding(CHECK, "fail", "times of modification do not follow the order of writing", "the file server's clock jumps: see NTP")
    skew = clock_offset(folder)
    text = f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > SKEW_S:
        return Finding(CHECK, "fail" if abs(skew) > WRONG_S else "warn", text, "synchronise the clocks of node and file server (NTP)")
    return Finding(CHECK, "ok", f"times of modification are in order, {text}")


def clock_offset(folder: Path) -> float:
    """Seconds by which the folder's file system is ahead of this machine's clock."""
    path = folder / f".clock-{os.getpid()}"
    before = time.time()
    path.write_text("x", encoding="utf-8")
    after = time.time()
    stamp = path.stat().st_mtime
    path.unlink()
    if before - 0.05 <= stamp <= after + 0.05:  # the kernel stamps files with a coarse clock
        return 0.0
    return stamp - (before if stamp < before else after)
