"""System metrics: correct from the first sample on, under the names that MLflow's UI knows."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from speechkd.tracking.system import SystemMeter

HOST = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage", "run_memory_usage_megabytes"}


def _smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An nvidia-smi of our own as the only program there is."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_first_sample_is_of_a_busy_machine_and_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    meter, end = SystemMeter(os.getpid()), time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    found = meter.sample()
    assert set(found) == HOST and all(value > 0 for value in found.values())


def test_cards_are_numbered_and_what_one_cannot_tell_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _smi(tmp_path, monkeypatch, 'echo "0, 37, 1000, 4000, 250.5"; echo "1, [N/A], 0, 4000, [N/A]"')
    found = SystemMeter(os.getpid()).sample()
    assert {name: value for name, value in found.items() if name.startswith("gpu_")} == {
        "gpu_0_utilization_percentage": 37.0,
        "gpu_0_power_usage_watts": 250.5,
        "gpu_0_memory_usage_megabytes": 1000 * 2**20 / 1e6,
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_1_memory_usage_megabytes": 0.0,
        "gpu_1_memory_usage_percentage": 0.0,
    }


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'"])
def test_a_driver_that_is_gone_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    _smi(tmp_path, monkeypatch, f"echo asked >> {tmp_path}/asked; {script}")
    meter = SystemMeter(os.getpid())
    assert set(meter.sample()) == set(meter.sample()) == HOST
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_process_that_is_gone_has_no_sample() -> None:
    assert SystemMeter(2**22 + 1).sample() == {}
