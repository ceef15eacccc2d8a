"""The text file of a run: any Prometheus parser reads it, the dashboard and the alerts find their metrics in it, it holds no secret."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from speechkd.tracking.journal import JOURNAL, Journal
from speechkd.tracking.prometheus import METRICS_FILE, MetricsFile, series

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "docker" / "grafana"


def read(path: Path) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Metric name -> (labels, value) of each series."""
    families = text_string_to_metric_families(path.read_text())
    return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in families}


def documented() -> set[str]:
    """The journal metrics of the table in docs/operations.md."""
    table = (ROOT / "docs/operations.md").read_text(encoding="utf-8").split("| metric | meaning |")[1]
    return {name for row in table.split("\n\n")[0].splitlines() for name in re.findall(r"`((?:train|teacher|data)/[a-z_]+)`", row)}


def queried() -> set[str]:
    """Names of ours in the dashboard's and the alerts' queries."""
    panels = json.loads((GRAFANA / "speechkd.json").read_text())["panels"]
    rules: Any = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"][0]["rules"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules]
    return {name for query in queries for name in re.findall(r"\bspeechkd_[a-z_]+", query)}


@pytest.fixture
def tracked(run: Path) -> Path:
    """A run with all documented metrics."""
    journal = Journal(run / JOURNAL)
    journal.status("RUNNING")
    journal.params({"teacher": {"api_key": "canary-1"}, "url": "https://me:canary-2@host"})
    journal.tags({"recipe": "kd", "slurm_job_id": "4711", "webhook_secret": "canary-3"})
    for step in (10, 20):
        journal.metrics(step, {name: step / 10 for name in documented()} | {"rank/3/step_seconds": 0.5})
    journal.checkpoint(20, "checkpoints/step-000020", "x")
    journal.results(20, {"eval/language/student": 0.75, "eval/one/gender/student": 0.5})
    (run / "system").mkdir()
    values = {"cpu_utilization_percentage": 50.0, "system_memory_usage_percentage": 10.0, "gpu_1_power_usage_watts": 300.0}
    sample = {"kind": "metric", "step": 1, "time_ms": 1, "values": values}
    (run / "system" / "node-1.jsonl").write_text(json.dumps(sample) + "\n")
    return run


def test_every_value_has_its_labels(tracked: Path, tmp_path: Path) -> None:
    collector = tmp_path / "collector"
    collector.mkdir()
    file = MetricsFile(tracked, str(collector))
    file.write(behind=123)
    found, common = read(tracked / METRICS_FILE), {"run": tracked.name, "recipe": "kd", "job_id": "4711"}
    assert found["speechkd_train_loss"] == [(common, 2.0)] and found["speechkd_step"] == [(common, 20.0)]
    assert found["speechkd_mlflow_behind_bytes"] == [(common, 123.0)]
    assert found["speechkd_rank_step_seconds"] == [({**common, "rank": "3"}, 0.5)]
    assert found["speechkd_system_gpu_power_usage_watts"] == [({**common, "node": "node-1", "gpu": "1"}, 300.0)]
    scores = [({**common, "task": "language", "metric": "student"}, 0.75), ({**common, "task": "one/gender", "metric": "student"}, 0.5)]
    assert found["speechkd_eval"] == scores
    states = {labels["status"]: value for labels, value in found["speechkd_status"]}
    assert states == {"RUNNING": 1.0, "FINISHED": 0.0, "FAILED": 0.0, "KILLED": 0.0}
    assert [path.name for path in collector.iterdir()] == [f"speechkd_{tracked.name}.prom"]
    assert "canary" not in (tracked / METRICS_FILE).read_text()

    Journal(tracked / JOURNAL).metrics(30, {"train/loss": float("nan")})
    file.write()
    assert str(read(tracked / METRICS_FILE)["speechkd_train_loss"][0][1]) == "nan"
    file.end("FAILED")
    file.write()
    assert ({**common, "status": "FAILED"}, 1.0) in read(collector / f"speechkd_{tracked.name}.prom")["speechkd_status"]


def test_dashboard_and_alerts_ask_for_what_a_run_writes(tracked: Path) -> None:
    MetricsFile(tracked).write(behind=0)
    assert len(queried()) > 12 and queried() <= set(read(tracked / METRICS_FILE))


def test_a_folder_that_is_gone_or_full_costs_the_file_alone(tracked: Path, tmp_path: Path) -> None:
    MetricsFile(tracked, str(tmp_path / "gone")).write()
    assert (tracked / METRICS_FILE).exists()


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("train/loss_top-k", ("speechkd_train_loss_top_k", {})),
        ("system/n/cpu", ("speechkd_system_cpu", {"node": "n"})),
        ("odd näme!", ("speechkd_odd_n_me_", {})),
        ("rank/1/data_wait_ratio", ("speechkd_rank_data_wait_ratio", {"rank": "1"})),
    ],
)
def test_names_become_valid(name: str, wanted: tuple[str, dict[str, str]]) -> None:
    assert series(name) == wanted
