"""What a run reads and makes, as MLflow's own objects: dataset inputs, a LoggedModel per checkpoint, registered model versions.

No model file is uploaded: path and digest stand in params and tags. Every method may be repeated with the same record (after a kill or an
outage): it looks first for what it made before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkd.tracking.mlflow_client import PARAM_LIMIT, TAG_LIMIT, MlflowRun, Point, cut, reporting_refusals, valid_name
from speechkd.tracking.records import Record

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

DIGEST_LIMIT = 36
MODEL_TYPE = "checkpoint"
BEST = "best"
"""Alias of the version with the highest held-out score of all versions of its registered model"""
STEP, SCORE = "checkpoint_step", "held_out_score"
_NO_REGISTRY = ("PERMISSION_DENIED", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED")
"""The user may not write to the registry, or the server has none"""


class MlflowModels:
    """Datasets, checkpoints and exports of one run. Raises the client's exceptions; what the server refuses for good is reported."""

    def __init__(self, run: MlflowRun, run_dir: Path) -> None:
        self._run, self._client = run, run.client
        self._folder = run_dir.resolve()
        self._ids: dict[int, str] = {}

    def log_dataset(self, record: Record) -> None:
        """Add a dataset input with licence and split sizes; the server keeps one of each name and digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        facts = record["facts"]
        source = json.dumps({"url": facts.get("homepage", ""), "shards": facts.get("shards", "")})
        dataset = Dataset(record["name"], record["digest"][:DIGEST_LIMIT], "speechkd", source, profile=json.dumps(facts))
        shown = {"mlflow.data.context": "training", "sha256": record["digest"], **facts}
        tags = [InputTag(name, cut(value, PARAM_LIMIT)) for name, value in shown.items()]
        with reporting_refusals(f"dataset {record['name']}"):
            self._client.log_inputs(self._run.id, [DatasetInput(dataset, tags)])

    def log_checkpoint(self, record: Record, metrics: Sequence[Point], dataset: tuple[str, str] | None) -> None:
        """Make a LoggedModel of a committed checkpoint, with the training metrics of its step."""
        with reporting_refusals(f"checkpoint {record['path']}"):
            model_id = self._model_id(record["step"]) or self._make_model(record)
            self._link_output(model_id, record["step"])
            self._run.send_model_metrics(model_id, metrics, dataset)

    def remove_checkpoint(self, step: int, exported: bool) -> None:
        """Delete the LoggedModel of a removed checkpoint; one that was exported stays, tagged as removed."""
        with reporting_refusals(f"removal of checkpoint {step}"):
            model_id = self._model_id(step)
            if model_id is not None and exported:
                self._client.set_logged_model_tags(model_id, {"kept": "false"})
            elif model_id is not None:
                self._client.delete_logged_model(model_id)
                del self._ids[step]

    def link_results(self, step: int, points: Sequence[Point], dataset: tuple[str, str] | None) -> None:
        """Add evaluation results to the LoggedModel that they measure, if there is one."""
        if (model_id := self._model_id(step)) is not None:
            self._run.send_model_metrics(model_id, points, dataset)

    def register(self, record: Record) -> None:
        """Make a version of the registered model for an export. Its files stay where they are; path and digest are tags."""
        with reporting_refusals(f"version of `{record['model']}`", _NO_REGISTRY):
            name = _registered(record["model"])
            tags = {STEP: str(record["step"]), "export_path": record["path"], "export_digest": record["digest"], **record["facts"]}
            if any(version.tags.get("export_digest") == record["digest"] for version in self._versions(name)):
                return
            if not self._client.search_registered_models(f"name = '{name}'", max_results=1):
                self._client.create_registered_model(name, description=f"Students distilled by recipe {record['model']}")
            model_id = self._model_id(record["step"])
            source = self._client.get_logged_model(model_id).artifact_location if model_id else f"runs:/{self._run.id}/export"
            short = {key: cut(value, TAG_LIMIT) for key, value in tags.items()}
            self._client.create_model_version(name, source, self._run.id, short, await_creation_for=0, model_id=model_id)

    def rank(self, model: str, step: int, score: float) -> None:
        """Note the held-out score of the versions of `step`, and point the alias BEST to the best version of the registered model."""
        with reporting_refusals(f"alias `{BEST}` of `{model}`", _NO_REGISTRY):
            name = _registered(model)
            for version in self._versions(name):
                if version.run_id == self._run.id and version.tags.get(STEP) == str(step):
                    self._client.set_model_version_tag(name, version.version, SCORE, f"{score:.6g}")
            scored = [version for version in self._versions(name) if SCORE in version.tags]
            if scored:
                best = max(scored, key=lambda version: (float(version.tags[SCORE]), int(version.version)))
                if BEST not in best.aliases:
                    self._client.set_registered_model_alias(name, BEST, best.version)

    def _versions(self, name: str) -> list[ModelVersion]:
        return list(self._client.search_model_versions(f"name = '{name}'", max_results=1000))

    def _model_id(self, step: int) -> str | None:
        """The LoggedModel of the run's checkpoint of `step`."""
        if step not in self._ids:
            query = f"source_run_id = '{self._run.id}' AND name = '{_model_name(step)}'"
            found = self._client.search_logged_models([self._run.experiment_id], query, max_results=1)
            if not found:
                return None
            self._ids[step] = found[0].model_id
        return self._ids[step]

    def _make_model(self, record: Record) -> str:
        params = {"step": str(record["step"]), "path": cut(str(self._folder / record["path"]), PARAM_LIMIT), "sha256": record["digest"]}
        made = self._client.create_logged_model(
            self._run.experiment_id,
            _model_name(record["step"]),
            self._run.id,
            tags={"run": self._folder.name, "kept": "true"},
            params=params,
            model_type=MODEL_TYPE,
        )
        self._client.finalize_logged_model(made.model_id, _ready())
        self._ids[record["step"]] = made.model_id
        return str(made.model_id)

    def _link_output(self, model_id: str, step: int) -> None:
        """Name the model as an output of the run, once: the server would keep a second link."""
        from mlflow.entities import LoggedModelOutput

        outputs: Any = self._client.get_run(self._run.id).outputs
        if not outputs or model_id not in {model.model_id for model in outputs.model_outputs}:
            self._client.log_outputs(self._run.id, [LoggedModelOutput(model_id, step)])


def _ready() -> Any:
    from mlflow.entities import LoggedModelStatus

    return LoggedModelStatus.READY


def _model_name(step: int) -> str:
    return f"step-{step:06d}"


def _registered(recipe: str) -> str:
    return valid_name(recipe).replace("/", "_").replace(":", "_")
