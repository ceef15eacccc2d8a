"""`RUN/jobs/jobs.json`: which jobs were submitted for a run, and what they have to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from speechkd.cluster.scheduler import QueuedJob, has_slurm, queued
from speechkd.core.config import Config, build
from speechkd.core.files import read_json, write_json

JOBS, RECORDS = "jobs", "jobs.json"


class SubmittedJob(Config):
    """One call of sbatch."""

    stage: Literal["shard", "teach", "train", "eval"]
    name: str
    job: int
    array: str = ""
    command: list[str]
    at: str
    """when, UTC"""


class ShardedPart(Config):
    """A corpus, or a column of one, that is made shard by shard."""

    stage: Literal["shard", "teach"]
    name: str
    root: str
    """its folder or URL"""
    shards: int


class JobRecords(Config):
    """All submissions of a run, oldest first."""

    profile: str
    nodes: int
    ranks: int
    """on each node"""
    parts: list[ShardedPart] = []
    jobs: list[SubmittedJob] = []

    def stage_jobs(self, stage: str) -> list[int]:
        """Ids of the jobs of a stage, oldest first."""
        return [job.job for job in self.jobs if job.stage == stage]


def read_records(run: Path) -> JobRecords | None:
    """What was submitted for a run; None where nothing was."""
    path = run / JOBS / RECORDS
    return build(JobRecords, read_json(path), str(path)) if path.is_file() else None


def write_records(run: Path, records: JobRecords) -> None:
    """Replace the records of a run."""
    write_json(run / JOBS / RECORDS, records.model_dump(mode="json"))


def alive(records: JobRecords | None) -> list[QueuedJob]:
    """The run's jobs that wait or run; none where there is no SLURM. Raises ConnectionError where it does not answer."""
    return queued(job.job for job in records.jobs) if records is not None and has_slurm() else []


def described(jobs: Sequence[QueuedJob], records: JobRecords) -> str:
    """`train 12 (RUNNING), teach 11 (PENDING, 3 tasks)`."""
    names = {job.job: job.name for job in records.jobs}
    groups: dict[tuple[int, str], int] = {}
    for found in jobs:
        groups[found.job, found.state] = groups.get((found.job, found.state), 0) + 1
    words: list[Any] = []
    for (job, state), count in groups.items():
        words.append(f"{names[job]} {job} ({state}{f', {count} tasks' if count > 1 else ''})")
    return ", ".join(words)
