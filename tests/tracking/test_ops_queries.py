"""The queries that docker/ops.md tells people to type find what they say, on a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from speechkd.tracking.journal import JOURNAL, Journal
from speechkd.tracking.mlflow_sender import sync
from speechkd.tracking.records import MEAN_SCORE
from tests.tracking.server import Server

DOC = Path(__file__).parents[2] / "docker" / "ops.md"
NAMES = "import json\nprint(json.dumps({name: [getattr(row, 'name', None) or row.info.run_name for row in globals()[name]] for name in"
FOUND = (
    "('running', 'failed', 'of_job', 'of_recipe', 'on_dataset', 'starved', 'skipping', 'dirty', 'best_runs', 'best_checkpoints', 'of_run')}"
)


def tracked(folder: Path, status: str, score: float, **tags: str) -> Path:
    """A run with one checkpoint, exported and evaluated; its metrics are bad where its score is."""
    journal = Journal(folder / JOURNAL)
    journal.status("RUNNING")
    journal.tags({"recipe": "meta_prompt_kd", **tags})
    journal.dataset("minibabel" if score > 0.5 else "other", "d" * 64, {"licence": "CC0-1.0"})
    journal.metrics(5, {"train/loss": 1 - score, "train/data_wait_ratio": 0.9 - score, "train/skipped_steps": float(score < 0.5)})
    journal.checkpoint(5, "checkpoints/step-000005", folder.name)
    journal.export(5, Path("/exports") / folder.name, folder.name, "meta_prompt_kd", {})
    journal.results(5, {MEAN_SCORE: score})
    if status != "RUNNING":
        journal.status(status)
    return folder


@pytest.mark.system
def test_every_query_finds_what_it_says(tmp_path: Path, server: Server) -> None:
    server.start()
    good = tracked(tmp_path / "good", "RUNNING", 0.8, slurm_job_id="4711")  # this process lives, so it runs
    bad = tracked(tmp_path / "bad", "FAILED", 0.2, git_dirty="true")
    for run in (good, bad):
        sync(run, server.uri, "speechkd")
    (block,) = re.findall(r"^```python\n(.*?)^```", DOC.read_text(encoding="utf-8"), flags=re.M | re.S)
    code = f"{block}\n{NAMES} {FOUND} | {{'place': place}}))"
    environment = os.environ | {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "running": ["good"],
        "failed": ["bad"],
        "of_job": ["good"],
        "of_recipe": ["bad", "good"],
        "on_dataset": ["good"],
        "starved": ["bad"],
        "skipping": ["bad"],
        "dirty": ["bad"],
        "best_runs": ["good", "bad"],
        "best_checkpoints": ["step-000005", "step-000005"],
        "of_run": ["step-000005"],
        "place": ["/exports/good", "good", "5"],
    }
