"""Writes a run's journal for other trackers: a TensorBoard event folder, or a Weights & Biases offline run.

Both are made anew from the journal and replace an earlier one, so repeating it changes nothing. Their libraries are extras of this package.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from speechkd.core.errors import InputError
from speechkd.core.files import sha256_bytes
from speechkd.tracking.journal import JOURNAL, last_status, read_journal
from speechkd.tracking.records import LATEST
from speechkd.tracking.sampler import sample_files

Target = Literal["tensorboard", "wandb"]

Point = tuple[int, int, str, float]
"""time in ms, step, metric, value"""


def export_journal(run_dir: Path, target: Target, out: Path | None = None) -> Path:
    """Write the run for `target` to `out` (unset: `RUN/<target>`); returns the folder.

    Raises InputError where the run has no journal, the library is missing, or `out` holds something else.
    """
    if not (run_dir / JOURNAL).is_file():
        raise InputError(f"`{run_dir}` is no run folder: it has no {JOURNAL}; name the folder that `speechkd train` wrote")
    if importlib.util.find_spec(target) is None:
        raise InputError(f"`--to {target}` needs a library that is not installed: `pip install 'speechkd[{target}]'`")
    folder = out or run_dir / target
    mark = f".speechkd-{target}"
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
        raise InputError(
            f"`{folder}` holds something else than an earlier `speechkd sync --to {target}`: name an empty folder with `--out`"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        fresh = Path(name)
        (_write_tensorboard if target == "tensorboard" else _write_wandb)(run_dir, fresh)
        (fresh / mark).touch()
        os.chmod(fresh, 0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
        fresh.mkdir()  # for the context, which removes it
    return folder


def points(run_dir: Path) -> list[Point]:
    """All points by time: the first value of a (metric, step), of results the last; system metrics as `system/<node>/<metric>`."""
    found: dict[tuple[str, int], tuple[int, float]] = {}
    for record in read_journal(run_dir / JOURNAL):
        if record["kind"] == "metric":
            for name, value in record["values"].items():
                if record.get(LATEST) or (name, record["step"]) not in found:
                    found[name, record["step"]] = (record["time_ms"], float(value))
    for node, path in sample_files(run_dir):
        for record in read_journal(path):
            for name, value in record["values"].items():
                found[f"system/{node}/{name}", record["step"]] = (record["time_ms"], float(value))
    return sorted((time_ms, step, name, value) for (name, step), (time_ms, value) in found.items())


def _named(run_dir: Path, kind: str) -> dict[str, str]:
    """All params or tags: the latest values."""
    values: dict[str, str] = {}
    for record in read_journal(run_dir / JOURNAL):
        if record["kind"] == kind:
            values |= record["values"]
    return values


def _write_tensorboard(run_dir: Path, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    params = _named(run_dir, "param") | _named(run_dir, "tag")
    first = next((record["time_ms"] for record in read_journal(run_dir / JOURNAL)), 0)
    table = "\n".join(f"| {name} | {value.replace('|', '/')[:500]} |" for name, value in sorted(params.items()))
    writer.add_text("settings", f"| name | value |\n|---|---|\n{table}", 0, first / 1000)
    for time_ms, step, name, value in points(run_dir):
        writer.add_scalar(name, value, step, time_ms / 1000)
    writer.close()


def _write_wandb(run_dir: Path, folder: Path) -> None:
    """An offline run that `wandb sync FOLDER/wandb/offline-run-*` uploads; its id stays, so a second upload replaces the first."""
    import wandb

    key = sha256_bytes(f"{run_dir.resolve().name} {next((r['time_ms'] for r in read_journal(run_dir / JOURNAL)), 0)}".encode())[:16]
    tags = _named(run_dir, "tag")
    quiet: Any = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, save_code=False, x_disable_stats=True, x_disable_meta=True
    )
    with _wandb_folders(folder):
        run = wandb.init(
            mode="offline",
            dir=str(folder),
            id=key,
            name=run_dir.resolve().name,
            project="speechkd",
            settings=quiet,
            config=_named(run_dir, "param"),
        )
        run.config.update({f"tag.{name}": value for name, value in tags.items()})
        run.define_metric("*", step_metric="step")
        rows: dict[tuple[int, int], dict[str, float]] = {}
        for time_ms, step, name, value in points(run_dir):
            rows.setdefault((time_ms, step), {})[name] = value
        for (time_ms, step), values in rows.items():
            run.log({**values, "step": step, "_timestamp": time_ms / 1000})
        run.finish(exit_code=0 if last_status(run_dir / JOURNAL) in ("FINISHED", "KILLED", "RUNNING") else 1)


@contextmanager
def _wandb_folders(folder: Path) -> Iterator[None]:
    """Keep the library's caches and settings out of the home folder, and everything it might report at home."""
    changed = {
        "WANDB_CACHE_DIR": str(folder / ".cache"),
        "WANDB_CONFIG_DIR": str(folder / ".config"),
        "WANDB_DATA_DIR": str(folder / ".data"),
    }
    changed["WANDB_ERROR_REPORTING"] = "false"
    before = {name: os.environ.get(name) for name in changed}
    os.environ |= changed
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name in (".cache", ".config", ".data"):
            shutil.rmtree(folder / name, ignore_errors=True)
