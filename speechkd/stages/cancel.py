"""`speechkd cancel`: takes a run's jobs out of SLURM's queue."""

from __future__ import annotations

from pathlib import Path

from speechkd.cluster import scheduler
from speechkd.core.errors import InputError
from speechkd.stages.job_records import alive, described, read_records


def cancel(run: Path) -> int:
    """Cancel every waiting or running job of a run by id, and print which. Raises InputError for a folder without jobs."""
    records = read_records(run)
    if records is None:
        raise InputError(f"`{run}` has no jobs: nothing was submitted for it with `speechkd submit`")
    found = alive(records)
    if not found:
        print(f"no job of {run} waits or runs")
        return 0
    scheduler.cancel(sorted({job.job for job in found}))
    print(f"cancelled: {described(found, records)}")
    return 0
