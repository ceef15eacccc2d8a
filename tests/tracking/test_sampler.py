"""Every node's samples: found by name, bounded, written while the parent lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkd.tracking import sampler
from speechkd.tracking.journal import read_journal
from speechkd.tracking.sampler import NodeSamples, node_label, sample_files
from tests.tracking.server import wait_for


@pytest.mark.parametrize(
    "name, wanted", [("gpu-node.01", "gpu-node.01"), ("../../etc", "_.._etc"), ("", "node"), ("a b\n$(x)", "a_b___x_")]
)
def test_a_nodes_name_is_a_safe_file_name(name: str, wanted: str, tmp_path: Path) -> None:
    assert node_label(name) == wanted
    assert NodeSamples(tmp_path, name, 1).path.parent == tmp_path / "system"


def test_a_resumed_run_continues_the_series_and_a_torn_line_costs_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "FIRST_SAMPLE_S", 0.0)
    NodeSamples(tmp_path, "n", os.getpid()).tick()
    ((node, path),) = sample_files(tmp_path)
    with path.open("ab") as stream:
        stream.write(b'{"kind":"metr')
    NodeSamples(tmp_path, "n", os.getpid()).tick()
    assert node == "n" and [record["step"] for record in read_journal(path)] == [1, 2]


def test_a_full_file_grows_no_more_but_still_shows_that_the_node_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "FIRST_SAMPLE_S", 0.0)
    monkeypatch.setattr(sampler, "FULL_BYTES", 10)
    samples = NodeSamples(tmp_path, "n", os.getpid())
    samples.path.parent.mkdir()
    samples.path.write_text("x" * 20)
    os.utime(samples.path, (1, 1))
    samples.tick()
    assert samples.path.stat().st_size == 20 and time.time() - samples.path.stat().st_mtime < 60


def test_the_process_samples_until_its_parent_is_gone(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from speechkd.tracking.sampler import start_sampler\n"
    code += "print(start_sampler(Path(sys.argv[1]), 'far').pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, limit = int(parent.stdout.readline()), time.monotonic() + 30
    while not any("\n" in path.read_text().partition("\n")[2] for _, path in sample_files(tmp_path)):  # a whole sample behind the head
        assert time.monotonic() < limit
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    wait_for(pid, 10)
    ((node, path),) = sample_files(tmp_path)
    assert node == "far" and json.loads(path.read_text().split("\n")[1])["values"]["run_memory_usage_megabytes"] > 0
