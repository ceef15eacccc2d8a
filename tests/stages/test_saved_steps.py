"""How far training came, by what stands in the run folder."""

from __future__ import annotations

import os
from pathlib import Path

from speechkd.core.files import write_text
from speechkd.engine.checkpoint import COMMIT
from speechkd.stages.run_folder import CHECKPOINTS
from speechkd.stages.saved_steps import markers, newest_whole, reached


def commit(run: Path, step: int, text: str = "{}") -> Path:
    folder = run / CHECKPOINTS / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / COMMIT, text)
    return folder


def test_the_step_reached_is_that_of_a_marker_written_since_the_start(tmp_path: Path) -> None:
    """Damaged checkpoints that the start passed over do not count, unless they were written anew."""
    assert reached(tmp_path, 0, markers(tmp_path)) == 0
    commit(tmp_path, 10)
    bad = commit(tmp_path, 20)
    before = markers(tmp_path)
    assert reached(tmp_path, 10, before) == 10
    (commit(tmp_path, 30) / COMMIT).unlink()
    commit(tmp_path, 16)
    assert reached(tmp_path, 10, before) == 16
    os.utime(bad / COMMIT, ns=(0, before[bad] - 1))
    assert reached(tmp_path, 10, before) == 20


def test_a_marker_with_nothing_behind_it_is_no_whole_checkpoint(tmp_path: Path) -> None:
    commit(tmp_path, 40)
    assert newest_whole(tmp_path) == 0 and newest_whole(tmp_path / "none") == 0
