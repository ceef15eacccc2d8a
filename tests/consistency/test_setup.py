"""The set-up script: done means done for this place, Python, torch and lock, and a killed run begins again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.consistency.house import ROOT

FAKE_PYTHON = """#!/usr/bin/env bash
# Stands for the interpreter: makes a "virtual environment" that holds itself, and writes down what it was asked to install.
echo "$@" >> "$CALLS"
case "$*" in
  *"-m venv"*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
  *base_prefix*) echo "/usr 3.11" ;;
  *editable*) [ -z "${DIE:-}" ] || kill -9 $PPID ;;
esac
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", ".ci/setup"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python").write_text(FAKE_PYTHON)
    for script in (tmp_path / "python", tmp_path / ".ci/setup"):
        script.chmod(0o755)
    return tmp_path


def start(house: Path, torch: str = "torch==1", die: str = "") -> subprocess.Popen[str]:
    """Start the script; what it asks Python for goes to the file `calls`."""
    variables = {**os.environ, "PYTHON": str(house / "python"), "TORCH": torch, "CALLS": str(house / "calls"), "DIE": die, "VENV": ".venv"}
    return subprocess.Popen(["bash", house / ".ci/setup"], env=variables, stderr=subprocess.PIPE, text=True)


def calls(house: Path) -> list[str]:
    return [line for line in (house / "calls").read_text().splitlines() if "base_prefix" not in line]


def setup(house: Path, torch: str = "torch==1", die: str = "") -> list[str]:
    """Run the script; what it asked Python for."""
    (house / "calls").unlink(missing_ok=True)
    process = start(house, torch, die)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode == 0) != bool(die), errors
    return calls(house)


def test_second_run_does_nothing(house: Path) -> None:
    first = setup(house)
    assert [line for line in first if "install" in line][0].endswith("torch==1 numpy"), "torch comes first"
    assert setup(house) == []


def test_killed_run_begins_again(house: Path) -> None:
    setup(house, die="yes")
    (house / ".venv/left-behind").touch()
    again = setup(house)
    assert any("-m venv" in line for line in again) and not (house / ".venv/left-behind").exists()
    assert setup(house) == []


def test_new_lock_updates_in_place_and_new_torch_begins_again(house: Path) -> None:
    setup(house)
    (house / ".venv/mine").touch()
    with (house / "constraints.txt").open("a") as stream:
        stream.write("# changed\n")
    assert any("--editable" in line for line in setup(house)) and (house / ".venv/mine").exists()
    assert any("torch==2" in line for line in setup(house, torch="torch==2")) and not (house / ".venv/mine").exists()


def test_two_at_once_share_one_set_up(house: Path) -> None:
    both = [start(house), start(house)]
    assert [process.communicate(timeout=60) and process.returncode for process in both] == [0, 0]
    assert sum("-m venv" in line for line in calls(house)) == 1
