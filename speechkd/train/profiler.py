"""A torch profiler trace of a few steps of rank 0, and one page that says where their time went: `train.profile: {from: 20, steps: 5}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.files import write_text
from speechkd.core.log import say

FOLDER, TRACE, SUMMARY = "profile", "trace.json.gz", "summary.txt"
ROWS = 40


class ProfileConfig(Config):
    """Which steps are profiled; in a recipe `start` may be written `from`."""

    start: int = Field(20, ge=1)
    """steps to leave out: the first ones allocate and compile"""
    steps: int = Field(5, ge=1, le=100)


class StepProfiler:
    """Profiles `config.steps` steps once `config.start` of this process are done; without a config it does nothing."""

    def __init__(self, config: ProfileConfig | None, folder: Path) -> None:
        self._config, self._folder, self._done = config, folder / FOLDER, 0
        self._profile: Any = None

    def begin(self) -> None:
        """A step begins."""
        if self._config is None or self._done != self._config.start:
            return
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(activities=activities, profile_memory=True)
        self._profile.start()

    def end(self) -> None:
        """A step ends."""
        self._done += 1
        if self._config is None or self._profile is None or self._done < self._config.start + self._config.steps:
            return
        found, self._profile = self._profile, None
        found.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(self._folder / TRACE))
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        write_text(self._folder / SUMMARY, f"{self._config.steps} steps of rank 0, after {self._config.start}\n{table}\n")
        say(f"train: profile of {self._config.steps} steps: {self._folder / SUMMARY}, {TRACE} (chrome://tracing, or perfetto.dev)")
