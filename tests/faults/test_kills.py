"""SIGKILL at any point, several partitions, two writers: nothing half-written is ever visible, and the bytes are always the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.corpus import write_card, write_tones

ROOT = Path(__file__).parents[2]


def run(what: str, folder: Path, *words: object) -> dict[str, int]:
    """kill_shards.py on a corpus of seven shards; what it found."""
    card = write_card(folder, write_tones(folder, 21), shard_samples=3)
    command = [sys.executable, "-m", "tests.faults.kill_shards", what, str(card), str(folder / "out"), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_partitions_and_two_writers_give_the_same_bytes(tmp_path: Path) -> None:
    assert run("partitions", tmp_path)["files"] == 7 * 3 + 5


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(3, id="3"),
        pytest.param(100, id="100", marks=pytest.mark.system),
        pytest.param(1000, id="1000", marks=pytest.mark.torture),
    ],
)
def test_killed_at_random_points_a_run_ends_in_the_same_bytes(points: int, tmp_path: Path) -> None:
    assert run("kills", tmp_path, "--points", points, "--seed", points)["kills"] == points
