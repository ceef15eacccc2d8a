"""`speechkd sync`: one line for what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.stages.sync import sync
from speechkd.tracking.journal import JOURNAL, Journal


def test_a_folder_without_a_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name one of them"):
        sync(tmp_path, None, tmp_path / "out")


def test_the_folder_for_tensorboard_is_named(tmp_path: Path) -> None:
    Journal(tmp_path / JOURNAL).metrics(1, {"train/loss": 1.0})
    assert sync(tmp_path, "tensorboard", tmp_path / "out") == str(tmp_path / "out")
    assert [*(tmp_path / "out").glob("events.*")]
