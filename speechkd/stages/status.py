"""`speechkd status RUN`: prints state, step and last metrics of a run, from its folder alone."""

from __future__ import annotations

from pathlib import Path

from speechkd.cluster.local import REQUEUE
from speechkd.engine.checkpoint import latest
from speechkd.stages.evaluate import EXPORT
from speechkd.stages.run import REPORT
from speechkd.stages.run_folder import CHECKPOINTS, run_recipe
from speechkd.tracking.journal import JOURNAL, last_status, metric_series

SHOWN = ("train/loss", "train/lr", "train/grad_norm", "train/samples_per_s", "train/data_wait_ratio", "train/skipped_steps")


def status(run: Path) -> int:
    """Print state, step, last metrics, newest valid checkpoint."""
    recipe = run_recipe(run)
    state = last_status(run / JOURNAL) or "not started"
    series = metric_series(run / JOURNAL)
    step = max((points[-1][0] for points in series.values() if points), default=0)
    newest = latest(run / CHECKPOINTS)
    print(f"run         {run}  ({recipe.name}, regime {recipe.train.regime})")
    print(f"state       {state}{' (wants to be requeued)' if (run / REQUEUE).is_file() else ''}")
    print(f"step        {step} of {recipe.train.steps}")
    print(f"checkpoint  {newest.name if newest else 'none'}")
    for name in SHOWN:
        if series.get(name):
            print(f"{name:<22} {series[name][-1][1]:.6g}")
    for name in (EXPORT, REPORT):
        if (run / name).exists():
            print(f"{name:<11} {run / name}")
    return 0
