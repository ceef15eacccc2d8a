"""This machine: Python, cores, memory, commands, and room on the disks that a run writes to."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import psutil

from speechkd.stages.doctor.finding import Finding, Level

GIB = 2**30
LOWEST_PYTHON = (3, 11)
LOW_GIB, TOO_LOW_GIB = 20.0, 2.0
"""Free disk at which a warning is given, and at which a run cannot keep a checkpoint of a small student"""
LOW_FILES, TOO_LOW_FILES = 10_000, 500
"""Free inodes: a corpus is hundreds of files, a cache thousands"""


def check_machine(scheduler: bool) -> list[Finding]:
    """Python, cores and memory, git, and SLURM's commands where a cluster profile is given."""
    good = sys.version_info >= LOWEST_PYTHON
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    cores = f"{len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total / GIB:.0f} GiB of memory"
    found = [
        Finding("python", "ok" if good else "fail", system, "" if good else "install Python 3.11 or newer"),
        Finding("machine", "ok", cores),
    ]
    tools = {"git": "the run's commit is recorded with it"} | ({"sbatch": "`speechkd submit` needs SLURM's commands"} if scheduler else {})
    for tool, why in tools.items():
        path = shutil.which(tool)
        found.append(Finding(tool, "ok", path) if path else Finding(tool, "warn", "not found", why))
    return found


def check_disk(name: str, folder: Path) -> list[Finding]:
    """Free space and inodes of the file system that holds `folder`, and whether this user may write there."""
    try:
        facts = os.statvfs(folder)
    except OSError as error:
        return [Finding(name, "fail", f"`{folder}`: {error.strerror}", "create it, or correct the profile")]
    free = facts.f_bavail * facts.f_frsize / GIB
    level, files = _level(free, LOW_GIB, TOO_LOW_GIB), ""
    if facts.f_files:  # some file systems make inodes as they go, and report none
        level = max(level, _level(facts.f_favail, LOW_FILES, TOO_LOW_FILES), key=("ok", "warn", "fail").index)
        files = f", {facts.f_favail:,} inodes"
    way_out = "" if level == "ok" else "remove old runs and caches, or ask for a larger quota"
    if not os.access(folder, os.W_OK):
        level, way_out = "fail", "this user may not write there"
    return [Finding(name, level, f"`{folder.resolve()}` on {file_system(folder)}: {free:.0f} GiB free{files}", way_out)]


def _level(value: float, low: float, too_low: float) -> Level:
    return "fail" if value < too_low else "warn" if value < low else "ok"


def file_system(folder: Path) -> str:
    """Kind of the file system that holds a folder, as Linux names it; `?` elsewhere."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "?"
    mounts = {parts[1]: parts[2] for parts in (line.split() for line in lines) if len(parts) > 2}
    path = folder.resolve()
    return next((mounts[str(parent)] for parent in (path, *path.parents) if str(parent) in mounts), "?")
