"""Writes a run's newest values as a Prometheus text file, for the textfile collector of a node exporter.

`RUN/metrics.prom`, and `<prometheus_dir>/speechkd_<run>.prom` where `tracking.prometheus_dir` is set. Every series has the labels run,
recipe and job_id (SLURM), so that it joins the panels of DCGM and SLURM exporters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from speechkd.tracking.journal import JOURNAL, records_from
from speechkd.tracking.records import STATUSES, Record
from speechkd.tracking.sampler import sample_files

METRICS_FILE = "metrics.prom"
COMMON = ("run", "recipe", "job_id")
_GPU = re.compile(r"gpu_(\d+)_(.+)")


def series(name: str) -> tuple[str, dict[str, str]]:
    """A journal metric's Prometheus name, and the labels that stand in its name: rank, node, GPU, task."""
    labels: dict[str, str] = {}
    match name.split("/"):
        case ["rank", rank, *rest] if rest:
            labels, name = {"rank": rank}, "rank/" + "/".join(rest)
        case ["system", node, metric]:
            labels, name = {"node": node}, f"system/{metric}"
            if gpu := _GPU.fullmatch(metric):
                labels, name = {"node": node, "gpu": gpu.group(1)}, f"system/gpu_{gpu.group(2)}"
        case ["eval", *task, metric] if task:
            labels, name = {"task": "/".join(task), "metric": metric}, "eval"
    return "speechkd_" + re.sub(r"[^a-zA-Z0-9_]", "_", name), labels


class MetricsFile(Collector):
    """Collects the newest values from journal and samples; reads each byte once. A failing disk costs the file, never an exception."""

    def __init__(self, run_dir: Path, prometheus_dir: str | None = None) -> None:
        self._run_dir, self._run = run_dir, run_dir.resolve().name
        self._paths = [run_dir / METRICS_FILE]
        if prometheus_dir:
            label = re.sub(r"[^A-Za-z0-9_.-]", "_", self._run)
            self._paths.append(Path(prometheus_dir) / f"speechkd_{label}.prom")
        self._offsets: dict[Path, int] = {}
        self._values: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._tags: dict[str, str] = {}
        self._own: dict[str, float] = {}
        self._status = ""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def write(self, behind: int | None = None) -> None:
        """Read what is new and write the files, each atomically. `behind`: bytes of the journal that MLflow does not have yet."""
        with suppress(OSError):
            self._read(self._run_dir / JOURNAL, "")
            for node, path in sample_files(self._run_dir):
                self._read(path, f"system/{node}/")
        if behind is not None:
            self._own["mlflow_behind_bytes"] = float(behind)
        for path in self._paths:
            with suppress(OSError):
                write_to_textfile(str(path), self._registry)
                os.chmod(path, 0o644)  # the exporter is another user

    def _read(self, path: Path, prefix: str) -> None:
        for record, self._offsets[path] in records_from(path, self._offsets.get(path, 0)):
            self._note(record, prefix)

    def _note(self, record: Record, prefix: str) -> None:
        match record["kind"]:
            case "metric":
                for name, value in record["values"].items():
                    if record["step"] >= self._steps.get(prefix + name, record["step"]):
                        self._values[prefix + name], self._steps[prefix + name] = float(value), record["step"]
            case "tag":
                self._tags |= record["values"]
            case "status":
                self._status = record["status"]
            case "checkpoint" if record["kept"]:
                self._own["checkpoint_step"] = float(record["step"])
                self._own["checkpoint_timestamp_seconds"] = record["time_ms"] / 1000
        if not prefix:
            self._own["journal_timestamp_seconds"] = record["time_ms"] / 1000

    def end(self, status: str) -> None:
        """Note the run's last status where the journal cannot say it: its process was killed."""
        self._status = status

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All series, grouped by name."""
        families: dict[str, GaugeMetricFamily] = {}
        rows = [(*series(name), value, f"speechkd journal metric {name.split('/')[0]}/...") for name, value in self._values.items()]
        rows += [(f"speechkd_{name}", {}, value, "speechkd run state") for name, value in self._own.items()]
        train = [step for name, step in self._steps.items() if name.startswith("train/")]
        rows += [("speechkd_step", {}, float(max(train)), "speechkd run state")] if train else []
        rows += [("speechkd_status", {"status": name}, float(name == self._status), "speechkd run state") for name in STATUSES]
        common = (self._run, self._tags.get("recipe", ""), self._tags.get("slurm_job_id", ""))
        for name, labels, value, help_text in rows:
            if name not in families:
                families[name] = GaugeMetricFamily(name, help_text, labels=[*COMMON, *labels])
            families[name].add_metric([*common, *labels.values()], value)
        yield from families.values()
