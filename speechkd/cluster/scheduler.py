"""SLURM's commands, called with argument lists and read in their parsable forms."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechkd.core.errors import InputError

CALL_S = 60
"""Most seconds that a command of SLURM may take"""
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
_FIELDS = re.compile(r"(\w+)=(\S*)")


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job, or a task of an array, as SLURM sees it."""

    job: int
    """what sbatch printed: the array's id for a task"""
    task: str
    """the number of an array's task; empty for a plain job"""
    state: str
    reason: str

    @property
    def label(self) -> str:
        """The id as people write it: 12 or 12_3."""
        return f"{self.job}_{self.task}" if self.task else str(self.job)


def has_slurm() -> bool:
    """Whether SLURM's commands are installed here."""
    return shutil.which("sbatch") is not None


def submit_script(path: Path, after: Sequence[int]) -> int:
    """Submit a batch script that waits until the jobs `after` have ended well; returns its job id.

    Raises InputError with SLURM's own words where it refuses.
    """
    dependency = [f"--dependency=afterok:{':'.join(map(str, after))}"] if after else []
    done = _call(["sbatch", "--parsable", *dependency, str(path)])
    job = done.stdout.strip().split(";")[0]
    if done.returncode or not job.isdigit():
        raise InputError(f"sbatch refused `{path}`: {_message(done)}")
    return int(job)


def queued(jobs: Iterable[int]) -> list[QueuedJob]:
    """Those of the jobs that wait or run, each task of an array by itself. Raises ConnectionError where SLURM does not answer."""
    wanted = set(jobs)
    if not wanted:
        return []
    done = _call(["squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r"])
    if done.returncode:
        raise ConnectionError(f"squeue: {_message(done)}")
    found = []
    for line in done.stdout.splitlines():
        job, task, state, reason = line.split("|", 3)
        if int(job) in wanted:
            found.append(QueuedJob(int(job), task if task.isdigit() else "", state, reason))
    return found


def ended(job: int) -> list[QueuedJob]:
    """How a job, or each task of an array, ended, as far as SLURM still knows."""
    done = _call(["scontrol", "show", "job", "--oneliner", str(job)])
    if done.returncode:
        return _accounted(job)
    found = []
    for line in done.stdout.splitlines():
        fields = dict(_FIELDS.findall(line))
        if fields.get("JobState"):
            task = fields.get("ArrayTaskId", "")
            found.append(QueuedJob(job, task if task.isdigit() else "", fields["JobState"], _why(fields)))
    return found


def cancel(jobs: Sequence[int]) -> None:
    """Cancel jobs by id. Raises ConnectionError where SLURM does not answer."""
    done = _call(["scancel", *map(str, jobs)])
    if done.returncode:
        raise ConnectionError(f"scancel: {_message(done)}")


def _accounted(job: int) -> list[QueuedJob]:
    """From the accounting database, where the cluster has one: SLURM's controller forgets jobs after some minutes."""
    words = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Reason", f"--jobs={job}"]
    done = _call(words) if shutil.which("sacct") else None
    if done is None or done.returncode:
        return []
    found = []
    for line in done.stdout.splitlines():
        label, state, reason = line.split("|", 2)
        _, _, task = label.partition("_")
        found.append(QueuedJob(job, task if task.isdigit() else "", state.split()[0], reason))
    return found


def _why(fields: dict[str, str]) -> str:
    code, reason = fields.get("ExitCode", "0:0"), fields.get("Reason", "None")
    return reason if reason != "None" else f"exit code {code.partition(':')[0]}" if code != "0:0" else ""


def _call(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one command of SLURM. Raises InputError where it is not installed, ConnectionError where it takes too long."""
    # from inside another job: its size must not become the new one's
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in ("SLURM_CONF", "SLURM_CLUSTERS")
    }
    try:
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=CALL_S, check=False)
    except FileNotFoundError:
        raise InputError(f"no `{words[0]}` here: this needs a machine from which SLURM jobs are submitted") from None
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"{words[0]} gave no answer in {CALL_S} s") from None


def _message(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}"
