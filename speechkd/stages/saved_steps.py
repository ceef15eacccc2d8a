"""How far the checkpoints of a run go: by their markers alone, or by reading every file of the newest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from speechkd.core.errors import DataError
from speechkd.engine.checkpoint import COMMIT, committed, latest, read_trainer, step_of
from speechkd.stages.run_folder import CHECKPOINTS


def markers(run: Path) -> dict[Path, int]:
    """Every checkpoint that was committed, whole or damaged since, with the time of its marker in ns."""
    return {folder: (folder / COMMIT).stat().st_mtime_ns for folder in committed(run / CHECKPOINTS)}


def reached(run: Path, start: int, before: Mapping[Path, int]) -> int:
    """The newest step that was committed after a start at step `start`, when there were `before` (see `markers`).

    By the markers alone: who has to leave the node before its time limit must not read gigabytes that were written a moment ago. Markers
    from before do not count, for the start may have passed over a damaged checkpoint.
    """
    return max([start, *(step_of(folder) for folder, at in markers(run).items() if before.get(folder) != at)])


def newest_whole(run: Path) -> int:
    """The step of the newest valid checkpoint, whose files are read for it; 0 without one."""
    try:
        newest = latest(run / CHECKPOINTS)
        return int(read_trainer(newest)["step"]) if newest is not None else 0
    except (OSError, DataError):
        return 0
