"""Real processes that reduce a tensor and look at one folder: as doctor starts them, and as srun does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechkd.core.files import read_json
from speechkd.stages.doctor.ranks import launched


def start(folder: Path, result: Path, join_s: float = 60.0, **env: str) -> subprocess.Popen[str]:
    code = f"from speechkd.stages.doctor import ranks; ranks.JOIN_S = {join_s}; ranks.main()"
    words = [sys.executable, "-c", code, str(folder), str(result)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.Popen(words, env={**clean, **env}, stderr=subprocess.PIPE, text=True)


def test_two_tasks_of_srun_find_each_other_through_the_shared_folder(tmp_path: Path) -> None:
    shared, result = tmp_path / "shared", tmp_path / "found.json"
    shared.mkdir()
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    tasks = [start(shared, result, **step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]
    for task in tasks:
        assert task.wait(timeout=100) == 0, task.stderr and task.stderr.read()[-2000:]
    found = read_json(result)
    assert {record["check"] for record in found} == {"all-reduce", "shared folder", "clocks"}
    assert not [record for record in found if record["level"] != "ok"]
    assert "gloo, 2 ranks on 1 node" in found[0]["text"]
    assert not list(shared.iterdir()), "nothing is left behind"


@pytest.mark.system
@pytest.mark.alone
def test_a_task_whose_neighbour_never_comes_says_so_in_time(tmp_path: Path) -> None:
    result = tmp_path / "found.json"
    step = {"SLURM_JOB_ID": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "GLOO_SOCKET_IFNAME": "lo"}
    assert start(tmp_path, result, 2.0, **step, SLURM_PROCID="0", SLURM_LOCALID="0").wait(timeout=60) == 0
    (found,) = read_json(result)
    assert found["level"] == "fail" and "do not reach each other" in found["text"] and "socket_ifname" in found["way_out"]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"], "no note is left for a later job"


def test_a_batch_script_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM sets SLURM_PROCID in a batch script, too, but the step's variables only under srun."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert launched() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    assert launched() == (0, 2, 0)
