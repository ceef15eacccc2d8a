"""A hostile corpus: nothing of it is executed, unpickled or written elsewhere; it costs little; and it is one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GROWTH, SECONDS = 256 << 20, 2.0
HARMLESS = {
    "clip: wav-of-4-gigabytes.wav",
    "clip: lies-of-no-length.flac",
    "clip: noise.wav",
    "tar: pickles",
    "tar: a path outside",
    "tar: an absolute path",
}
"""Which hold a sample all the same, and are stored as that: under a key that is no path, its other members unopened"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What happened with each artefact; the first one is harmless."""
    out = tmp_path_factory.mktemp("hostile")
    done = subprocess.run([sys.executable, "-m", "tests.faults.hostile", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.system
def test_nothing_runs_and_nothing_is_written_elsewhere(used: list[dict[str, Any]]) -> None:
    assert len(used) > 60
    assert not {each["name"]: each["events"] for each in used if each["events"]}


@pytest.mark.system
def test_each_is_one_clear_line(used: list[dict[str, Any]]) -> None:
    assert used[0]["outcome"] == "used" and used[0]["told"][0].startswith("stored 1 samples"), used[0]
    wrong = [each for each in used if each["outcome"] not in ("used", "refused") or not each["told"]]
    assert not wrong, wrong
    assert not [each for each in used if any("\n" in line or not line or len(line) > 1000 for line in each["told"])]
    stored = {each["name"] for each in used[1:] if each["told"][0].startswith("stored")}
    assert stored <= HARMLESS, stored - HARMLESS


@pytest.mark.system
def test_none_takes_much_memory_or_time(used: list[dict[str, Any]]) -> None:
    assert not {each["name"]: each["grown"] >> 20 for each in used if each["grown"] > GROWTH}
    baseline_s = used[0]["seconds"]  # of the pipeline around one clip, on this machine now
    assert not {each["name"]: each["seconds"] for each in used if each["seconds"] - baseline_s > SECONDS}
