"""How far a run is: its stages, throughput, restarts, failures. Read from its folders, and from SLURM where there is one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechkd.cluster.local import REQUEUE
from speechkd.cluster.scheduler import QueuedJob, ended, has_slurm
from speechkd.core.errors import DataError, InputError
from speechkd.core.files import read_json
from speechkd.data.storage.manifest import MANIFEST
from speechkd.data.storage.store import list_folder, parse_location
from speechkd.engine.checkpoint import committed
from speechkd.evaluation.starts import DIED, starts_of
from speechkd.recipe import Recipe
from speechkd.stages.evaluate import EVAL, SUMMARY
from speechkd.stages.inputs.corpora import open_corpora
from speechkd.stages.job_records import JOBS, JobRecords, alive, read_records
from speechkd.stages.restart import read_history
from speechkd.stages.results import REPORT
from speechkd.stages.run_folder import CHECKPOINTS, RECIPE, run_recipe
from speechkd.tracking.journal import JOURNAL, last_status, metric_series, read_journal
from speechkd.train.watchdog import STACKS

SHOWN = ("train/loss", "train/lr", "train/grad_norm", "train/samples_per_s", "train/data_wait_ratio", "train/skipped_steps")
WELL = {"COMPLETED", "COMPLETING"}
PACE_STEPS = 50
"""Steps whose time the estimate of the time left is made from"""
LOG_TAIL = 1 << 16
_ERROR = re.compile(rb"^(?:\d+: )?((?:error|slurmstepd: error|srun: error)\b.*)$", re.M)


@dataclass(frozen=True, slots=True)
class StageState:
    """One stage of a run."""

    stage: str
    state: str
    """done, running, waiting, failed, or `not started`"""
    done: int | None
    total: int | None
    unit: str
    jobs: list[str] = field(default_factory=list)
    """ids with SLURM's states: `12_0 RUNNING`; where none is in the queue, the ids of all that were submitted"""


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything that `speechkd status` shows."""

    run: str
    name: str
    regime: str
    state: str
    requeue: bool
    step: int
    steps: int
    checkpoint: str | None
    stages: list[StageState]
    metrics: dict[str, float]
    eta_seconds: float | None
    quarantined: int | None
    restarts: int
    failure: str | None
    reason: str | None
    """why training ended, as its journal has it; None while it goes on"""
    seconds: float
    """that training took in all its starts"""
    evaluation: dict[str, dict[str, Any]]
    """task -> its scores, as in eval/summary.json"""
    stacks: list[str]
    slurm: bool
    """whether SLURM was asked about the jobs"""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def run_state(run: Path) -> RunState:
    """Where a run stands. Raises InputError for a folder that is none, ConnectionError where SLURM does not answer."""
    records = read_records(run)
    recipe = run_recipe(run if records is None or (run / RECIPE).is_file() else run / JOBS)
    queue = alive(records)
    series = metric_series(run / JOURNAL)
    step = max((points[-1][0] for name, points in series.items() if points and name.startswith("train/")), default=0)
    # by its marker alone: this is asked every few seconds, and a checkpoint may be gigabytes on a shared folder
    newest = next(iter(committed(run / CHECKPOINTS)), None)
    state = last_status(run / JOURNAL)
    events = read_history(run)
    starts = starts_of(read_journal(run / JOURNAL))
    stages = _stages(run, recipe, records, queue, step, state)
    return RunState(
        run=str(run),
        name=recipe.name,
        regime=recipe.train.regime,
        state=state or "not started",
        requeue=(run / REQUEUE).is_file(),
        step=step,
        steps=recipe.train.steps,
        checkpoint=newest.name if newest else None,
        stages=stages,
        metrics={name: points[-1][1] for name, points in series.items() if points and (name in SHOWN or name.startswith("eval/"))},
        eta_seconds=_eta(run, series, recipe.train.steps) if state == "RUNNING" else None,
        quarantined=_quarantined(recipe, series),
        restarts=max(0, sum(event.get("event") == "start" for event in events) - 1),
        failure=_failure(run, records, events, stages, state),
        reason=starts[-1].reason or None if starts and state != "RUNNING" else None,
        seconds=round(sum(start.seconds for start in starts), 1),
        evaluation=read_json(run / EVAL / SUMMARY)["tasks"] if (run / EVAL / SUMMARY).is_file() else {},
        stacks=sorted(str(path) for path in (run / STACKS).glob("*.txt")),
        slurm=records is not None and has_slurm(),
    )


def _stages(
    run: Path, recipe: Recipe, records: JobRecords | None, queue: Sequence[QueuedJob], step: int, status: str | None
) -> list[StageState]:
    trained = status == "FINISHED" or step >= recipe.train.steps
    began = status is not None or step > 0
    counts: dict[str, tuple[int | None, int | None, str]] = {
        "shard": _shards("shard", records, began),
        "teach": _shards("teach", records, began),
        "train": (step, recipe.train.steps, "steps"),
        "eval": (int((run / SUMMARY).is_file() and (run / REPORT).is_file()), 1, "report"),
    }
    out = []
    for stage, (done, total, unit) in counts.items():
        jobs = set(records.stage_jobs(stage)) if records is not None else set()
        mine = [job for job in queue if job.job in jobs]
        complete = trained if stage == "train" else done is not None and done == total
        if any(job.state in ("RUNNING", "COMPLETING", "CONFIGURING") for job in mine) or (stage == "train" and status == "RUNNING"):
            state = "running"
        elif mine:
            state = "waiting"
        elif complete or (done is None and began and stage in ("shard", "teach")):
            state = "done"
        elif (jobs and has_slurm()) or (stage == "train" and status == "FAILED"):
            state = "failed"
        else:
            state = "not started" if not done else "stopped"
        labels = [f"{job.label} {_said(job)}" for job in mine] or [str(job) for job in sorted(jobs)]
        out.append(StageState(stage, state, done, total, unit, labels))
    return out


def _said(job: QueuedJob) -> str:
    return f"{job.state} ({job.reason})" if job.state == "PENDING" and job.reason != "None" else job.state


def _shards(stage: str, records: JobRecords | None, began: bool) -> tuple[int | None, int | None, str]:
    """(done, total) shards of the corpora or columns that were submitted; unknown for a run that never was."""
    parts = [part for part in records.parts if part.stage == stage] if records is not None else []
    if not parts:
        return None, None, "shards"
    done = 0
    for part in parts:
        root = parse_location(part.root)
        written = sum(name[:1].isdigit() for name in list_folder(root / "receipts"))
        done += part.shards if (root / MANIFEST).is_file() else min(written, part.shards - 1)  # the last step is to publish
    return done, sum(part.shards for part in parts), "shards"


def _eta(run: Path, series: Mapping[str, list[tuple[int, float]]], steps: int) -> float | None:
    """Seconds until the last step: what training says, else from the pace of the last steps."""
    if points := series.get("train/eta_seconds"):
        return points[-1][1]
    stamps = [
        (record["step"], record["time_ms"]) for record in read_journal(run / JOURNAL) if record["kind"] == "metric" and record["step"]
    ]
    if len(stamps) < 2:
        return None
    (first, began), (last, ended_at) = stamps[-PACE_STEPS:][0], stamps[-1]
    return (steps - last) * (ended_at - began) / 1000 / (last - first) if last > first else None


def _quarantined(recipe: Recipe, series: Mapping[str, list[tuple[int, float]]]) -> int | None:
    if points := series.get("data/quarantined"):
        return int(points[-1][1])
    try:
        return sum(int(corpus.shards.manifest["quarantined"]) for corpus in open_corpora(recipe.data))
    except (InputError, DataError):  # not sharded yet
        return None


def _failure(
    run: Path,
    records: JobRecords | None,
    events: Sequence[Mapping[str, Any]],
    stages: Sequence[StageState],
    state: str | None,
) -> str | None:
    """Why the run does not go on, where it does not: SLURM's word, the restart's reason, the last error of a log."""
    failed = next((stage.stage for stage in stages if stage.state == "failed"), None)
    if failed is None and state != "FAILED":
        return None
    words = []
    for job in records.jobs if records is not None and has_slurm() else []:
        if job.stage == failed and job.job == records.stage_jobs(job.stage)[-1]:  # type: ignore[union-attr]
            bad = [found for found in ended(job.job) if found.state not in WELL]
            words += [f"job {bad[0].label} {bad[0].state}{f' ({bad[0].reason})' if bad[0].reason else ''}"] if bad else []
    told = [event for event in events if event["event"] == "start" or event.get("reason")]
    if told and failed in (None, "train"):  # a start with nothing after it: whoever would have told why is dead
        words.append(DIED if told[-1]["event"] == "start" else str(told[-1]["reason"]))
    logs = sorted((run / JOBS).glob(f"{failed or 'train'}*.log"), key=lambda path: path.stat().st_mtime)
    for log in reversed(logs):
        if found := _ERROR.findall(_tail(log)):
            words.append(f"{found[-1].decode(errors='replace')[:300]} ({log})")
            break
    return "; ".join(words) or None


def _tail(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - LOG_TAIL))
        return stream.read()
