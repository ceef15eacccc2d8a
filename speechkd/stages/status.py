"""`speechkd status RUN`: prints where a run stands, once, as JSON, or as a table that follows it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from speechkd.evaluation.score_table import score_table
from speechkd.stages.evaluate import EXPORT
from speechkd.stages.progress import SHOWN, RunState, run_state
from speechkd.stages.results import REPORT

WATCH_S = 3.0
JOBS_SHOWN = 4


def status(run: Path, as_json: bool = False, watch: bool = False) -> int:
    """Print the state of a run; with `watch`, until nothing of it runs or waits. Raises InputError for a folder that is no run."""
    if as_json:
        print(json.dumps(run_state(run).plain(), indent=1))
    elif watch:
        _follow(run)
    else:
        state = run_state(run)
        for name, value in _facts(run, state):
            print(f"{name:<{11 if len(name) < 12 else 22}} {value}")
        for stage in state.stages:
            print(f"{stage.stage:<11} {stage.state:<12}{_count(stage.done, stage.total, stage.unit):<18}{_jobs(stage.jobs)}".rstrip())
        if state.evaluation:
            print(score_table(state.evaluation))
    return 0


def _follow(run: Path) -> None:
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            state = run_state(run)
            table = Table(title=f"{state.run} ({state.name}, regime {state.regime})", title_justify="left")
            for heading in ("stage", "state", "done", "jobs"):
                table.add_column(heading)
            for stage in state.stages:
                table.add_row(stage.stage, stage.state, _count(stage.done, stage.total, stage.unit), _jobs(stage.jobs))
            table.add_section()
            for name, value in _facts(run, state)[1:]:
                table.add_row(name, value)
            live.update(table, refresh=True)
            if not any(stage.state in ("running", "waiting") for stage in state.stages):
                return
            time.sleep(WATCH_S)


def _facts(run: Path, state: RunState) -> list[tuple[str, str]]:
    facts = [
        ("run", f"{run}  ({state.name}, regime {state.regime})"),
        ("state", f"{state.state}{' (wants to be requeued)' if state.requeue else ''}"),
        ("step", f"{state.step} of {state.steps}"),
        ("checkpoint", state.checkpoint or "none"),
    ]
    if state.eta_seconds is not None:
        facts.append(("left", _clock(state.eta_seconds)))
    if state.seconds:
        facts.append(("trained", _clock(state.seconds)))
    if state.restarts:
        facts.append(("restarts", str(state.restarts)))
    if state.quarantined is not None:
        facts.append(("quarantine", f"{state.quarantined} clips"))
    facts += [(name, f"{state.metrics[name]:.6g}") for name in SHOWN if name in state.metrics]
    if state.failure:
        facts.append(("failure", state.failure))
    elif state.reason:
        facts.append(("reason", state.reason))
    if state.stacks:
        facts.append(("stacks", ", ".join(state.stacks)))
    return facts + [(name, str(run / name)) for name in (EXPORT, REPORT) if (run / name).exists()]


def _count(done: int | None, total: int | None, unit: str) -> str:
    return "" if total is None else f"{done} of {total} {unit}"


def _jobs(jobs: list[str]) -> str:
    more = f", and {len(jobs) - JOBS_SHOWN} more" if len(jobs) > JOBS_SHOWN else ""
    return ", ".join(jobs[:JOBS_SHOWN]) + more


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
