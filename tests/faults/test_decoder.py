"""A process that decodes is ended in the middle of its block: the run goes on, and every item is accounted for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkd.data.shards.index import open_shards
from tests.data.corpus import write_card
from tests.data.raw import noise, write

ROOT = Path(__file__).parents[2]
CLIPS, SHARD = 24, 12


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of clips that take a while."""
    folder = tmp_path_factory.mktemp("long")
    for number in range(CLIPS):
        write(folder / "clips" / f"{number}.wav", noise(number, 20.0))
    rows = [{"id": f"c{number:02d}", "audio": f"{number}.wav", "instrument": "noise"} for number in range(CLIPS)]
    return write_card(folder, rows, shard_samples=SHARD)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are still there."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def opened(pid: int) -> list[str]:
    """Files that a process has open."""
    try:
        return [os.path.realpath(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except FileNotFoundError:
        return []


def at_work(stage: subprocess.Popen[str], out: Path) -> int:
    """The process that writes shard 0, once part of the shard is on disk."""
    end = time.monotonic() + 120
    while time.monotonic() < end and stage.poll() is None:
        begun = {str(path.resolve()) for path in out.rglob(".000000.tar.*.tmp") if path.stat().st_size}
        for pid in [pid for server in children(stage.pid) for pid in children(server)] if begun else ():
            if begun.intersection(opened(pid)):
                return pid
        time.sleep(0.001)
    raise AssertionError(f"no process wrote shard 0: {stage.communicate()}")


def run(card: Path, out: Path, how: signal.Signals | None = None) -> subprocess.CompletedProcess[str]:
    """`speechkd shard`; whoever writes shard 0 is ended by a signal."""
    words = [sys.executable, "-m", "speechkd", "shard", str(card), "--out", str(out)]
    stage = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if how:
        os.kill(at_work(stage, out), how)
    output, errors = stage.communicate(timeout=300)
    return subprocess.CompletedProcess(words, stage.returncode, output, errors)


def test_a_decoder_that_crashes_costs_one_clip(card: Path, tmp_path: Path) -> None:
    done = run(card, tmp_path, signal.SIGSEGV)
    assert done.returncode == 0, done.stderr
    shards = open_shards(tmp_path / "tones/v1")
    lines = [json.loads(line) for line in (tmp_path / "tones/v1/quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["ends its decoder with SIGSEGV"] and lines[0]["shard"] == 0
    stored = {sample.key for sample in shards.samples()}
    assert stored | {lines[0]["key"]} == {f"c{number:02d}" for number in range(CLIPS)} and lines[0]["key"] not in stored
    assert shards.manifest["input"] == CLIPS == len(shards) + shards.manifest["quarantined"]
    assert list(shards.verify()) == []


@pytest.mark.slow
def test_a_decoder_that_is_killed_begins_its_block_again(card: Path, tmp_path: Path) -> None:
    assert run(card, tmp_path / "whole").returncode == 0
    done = run(card, tmp_path / "killed", signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    whole, killed = tmp_path / "whole/tones/v1", tmp_path / "killed/tones/v1"
    assert (killed / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert list(open_shards(killed).verify()) == [] and open_shards(killed).manifest["quarantined"] == 0
    assert not list(killed.rglob(".*.tmp"))
