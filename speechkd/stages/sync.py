"""`speechkd sync`: sends a run to MLflow, or writes it for TensorBoard or Weights & Biases."""

from __future__ import annotations

from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.tracking.exports import Target, export_journal
from speechkd.tracking.mlflow_sender import sync as send


def sync(run: Path, to: Target | None, out: Path | None) -> str:
    """Do it; returns what was done, in words."""
    if to is None:
        if out is not None:
            raise InputError("`--out` is where `--to tensorboard` or `--to wandb` writes: name one of them")
        return f"{send(run)} points sent"
    return str(export_journal(run, to, out))
