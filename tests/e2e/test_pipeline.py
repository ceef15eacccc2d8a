"""The whole pipeline on real parts: tars, an LLM that generates, ZeRO-3 on two processes, a kill, an MLflow server on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from speechkd.tracking.journal import JOURNAL
from speechkd.tracking.prometheus import METRICS_FILE
from tests.e2e.conftest import CHECKPOINT_EVERY, ROOT, STEPS, here, kill_one_rank, losses, speechkd, start, wait_for
from tests.tracking.test_prometheus import queried, read

LAST = f"step-{STEPS:06d}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'm.db'}"]
    words += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = (folder / "log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *words], env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _post(server: str, path: str, body: dict[str, object]) -> Any:
    request = urllib.request.Request(f"{server}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_shard_teach_train_kill_resume_export_eval_report_ask(workshop: Path, server: str, tmp_path: Path) -> None:
    run = workshop / "runs" / "whole"
    words = ("run", workshop / "recipe.yaml", "--set", "name=whole", "--set", f"tracking.uri={server}", "--set", "tracking.experiment=e2e")
    first = start(*words, "--ranks", 2)
    wait_for(lambda: max(losses(run), default=0) >= CHECKPOINT_EVERY + 2)
    kill_one_rank(run)
    assert first.wait(90) == 1
    done = speechkd(*words, "--ranks", 4)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(losses(run)) == list(range(1, STEPS + 1))

    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert {"language", "gender", "rate"} <= set(summary["tasks"])
    for row in summary["tasks"].values():
        assert {"student", "unseen", "teacher", "chance", "shuffled", "untrained", "unparsable", "n"} <= set(row)
        assert 0 < row["n"] <= 12 and row["teacher"] >= 0.9, row
    assert {"shard", "teach", "train", "export", "eval", "report"} <= set(summary["seconds"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<audio" in page and "language" in page

    experiment = _post(server, "experiments/search", {"max_results": 10, "filter": "name = 'e2e'"})["experiments"][0]["experiment_id"]
    [tracked] = _post(server, "runs/search", {"experiment_ids": [experiment]})["runs"]
    metrics = {m["key"]: m["value"] for m in tracked["data"]["metrics"]}
    assert tracked["info"]["status"] == "FINISHED"
    assert abs(metrics["train/loss"] - losses(run)[STEPS]) < 1e-6
    wanted = {"train/lr", "train/grad_norm", "train/samples_per_s", "train/data_wait_ratio", "data/quarantined", "eval/language/student"}
    assert wanted <= set(metrics)
    found = _post(server, "logged-models/search", {"experiment_ids": [experiment]})["models"]
    models = {model["info"]["name"]: model for model in found}
    assert set(models) == {folder.name for folder in (run / "checkpoints").glob("step-*")}
    assert "eval/language/student" in {m["key"] for m in models[LAST]["data"]["metrics"]}
    assert tracked["inputs"]["dataset_inputs"][0]["dataset"]["name"] == "tiny"
    assert queried() <= set(read(run / METRICS_FILE))  # the dashboard and the alerts find what they ask for

    began = time.monotonic()
    again = speechkd(*words, "--ranks", 4)
    assert again.returncode == 0 and time.monotonic() - began < 40  # a loaded machine; seconds on a free one
    assert "train: finished before" in again.stderr and "eval student" not in again.stderr

    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.zeros(16_000, np.float32), 16_000)
    answer = here("ask", run / "export", clip, "What language is spoken?")
    assert answer.returncode == 0 and answer.stdout.strip()
    state = here("status", run)
    assert "FINISHED" in state.stdout and LAST in state.stdout


def test_an_export_gives_the_logits_of_training_in_a_fresh_process_without_deepspeed(exported: Path) -> None:
    """At most 1e-5 of the largest logit apart, in a process that never loads deepspeed."""
    probe = exported.parent / "probes" / "step-000003.safetensors"
    code = (
        "import sys; from safetensors.torch import load_file; from speechkd.models import load_student\n"
        "from speechkd.engine.export import probe_batch\n"
        f"saved = load_file({str(probe)!r}); student = load_student({str(exported)!r})\n"
        "ours, theirs = student.logits(probe_batch(saved), saved['predict_T']), saved['logits_TV']\n"
        "difference = float((ours - theirs).abs().max() / theirs.abs().max())\n"
        "assert 'deepspeed' not in sys.modules; print(difference)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) <= 1e-5
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "standins/llm" in card and "load_student" in card


def test_a_run_is_asked_about_a_corpus_that_it_never_trained_on(workshop: Path, exported: Path) -> None:
    """It has test splits alone; what comes out never passes for the run's own result, in its folder or its journal."""
    card = yaml.safe_load((workshop / "tiny.yaml").read_text(encoding="utf-8")) | {"name": "far"}
    card["source"] |= {"seed": 7, "splits": {"test_known": {"clips": 6}}}
    (workshop / "far.yaml").write_text(yaml.safe_dump(card, allow_unicode=True, sort_keys=False), encoding="utf-8")
    assert here("shard", workshop / "far.yaml", "--out", workshop / "data").returncode == 0
    run = exported.parent
    journal_text = (run / JOURNAL).read_text(encoding="utf-8")
    asked = ("--set", f"data.corpora=[{{card: {workshop / 'far.yaml'}}}]", "--set", "evaluation.splits={student: test_known}")
    done = here("eval", workshop / "recipe.yaml", "--set", "name=short", "--set", "train.regimes.kd.0.steps=3", *asked)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((run / "eval/far/summary.json").read_text(encoding="utf-8"))["tasks"]["language"]["n"] == 6
    assert not (run / "eval/summary.json").exists() and (run / JOURNAL).read_text(encoding="utf-8") == journal_text


@pytest.mark.slow
def test_another_corpus_with_other_fields_trains_as_is(workshop: Path, tmp_path: Path) -> None:
    """Tones from a jsonl file, a field that no other corpus has, labels as the teacher, a text-only row among them."""
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    rows = []
    for number in range(24):
        kind = ("low", "high")[number % 2]
        tone = np.sin(np.arange(12_000) * (0.05, 0.4)[number % 2]).astype(np.float32) * 0.3
        soundfile.write(sounds / f"{number}.wav", tone, 16_000)
        rows.append({"audio": f"{number}.wav", "register": kind, "part": "train" if number < 16 else "held"})
    rows.append({"register": "low", "part": "train"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"instruction": "Which register?", "field": "register", "kind": "choice", "choices": ["low", "high"]}
    source = {"kind": "jsonl", "file": "rows.jsonl", "root": "sounds", "split_field": "part"}
    card = {"name": "tones", "version": "v1", "licence": "CC0-1.0", "source": source, "tasks": {"register": task}, "shard_samples": 10}
    card |= {"text_only": True}
    (tmp_path / "tones.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    data = {"root": str(tmp_path / "data"), "corpora": [{"card": str(tmp_path / "tones.yaml")}]}
    recipe |= {"name": "tones", "runs": str(tmp_path / "runs"), "data": data}
    recipe["train"] |= {"regime": "mix", "regimes": {"mix": [{"name": "mix", "steps": 3, "mix": {"ift": 1, "kd": 0.5}}]}}
    recipe["evaluation"] |= {"splits": {"student": "held"}}
    recipe["teachers"]["kd"] |= {"fields": ["register"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = speechkd("run", tmp_path / "recipe.yaml", "--ranks", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / "tones" / "summary.json").read_text(encoding="utf-8"))
    assert summary["tasks"]["register"]["n"] == 8 and summary["tasks"]["register"]["chance"] == 0.5
