"""What a user gets wrong is one line on standard error and exit code 2: what was given, what is allowed, where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from speechkd import cli
from tests.e2e.conftest import ROOT, here

RECIPE = ROOT / "pipelines/meta_prompt_kd.yaml"


def _says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object, code: int = 2) -> str:
    """The one line that the command line answers with, in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["speechkd", *map(str, words)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == code
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message and message.count("\n") == 0, message
    return message


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--set", "optim.learning_rate=1e-3"], ["learning_rate", "allowed", "optim"]),
        (["--set", "student.projector.hiden=3"], ["hiden", "did you mean `hidden`"]),
        (["--set", "student.projector.kind=mlp_stak"], ["mlp_stak", "mlp_stack"]),
        (["--set", "losses.topk_kl.weight=1"], ["topk_kl", "`topk`", "teacher `kd`", "hf_local", "losses.topk_kl.teacher"]),
        (["--set", "train.regime=kd_ft"], ["kd_ft", "did you mean `kd_ift`"]),
        (["--set", "teachers.kd.backend=hf_locl"], ["hf_locl", "hf_local"]),
        (["--ranks", "3", "--dry-run"], ["3 ranks", "2 micro-batches", "nearest: 2"]),
        (["--set", "deepspeed=ds_configs/zero4.json", "--dry-run"], ["zero4.json", "did you mean"]),
        (["--set", "student.llm=standins/lm", "--dry-run"], ["standins/lm"]),
        (["--set", "student.projector={kind: qformer, init_from: standins/llm}", "--dry-run"], ["standins/llm", "projector.init_from"]),
        (["--set", "nonsense"], ["--set nonsense", "key.path=value"]),
        (["--set", "losses.response_ce.weight=heavy"], ["valid number", "`heavy`", "losses.response_ce.weight"]),
        (["--set", "objectives={a: [response_ce]}", "--set", "objective=a", "--set", "losses.topk_kl.k=x"], ["`x`", "losses.topk_kl.k"]),
        (["--set", "losses.response_c={}"], ["response_c", "did you mean `response_ce`"]),
        (["--set", "optim="], ["must be a mapping of keys, is empty", "optim"]),
        (["--set", "name=../../etc"], ["letters, digits", "`../../etc`", "name"]),
    ],
)
def test_a_wrong_recipe(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    message = _says(capsys, monkeypatch, "train", RECIPE, *words)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "words, parts",
    [
        (["tarin"], ["tarin", "train"]),
        (["train"], ["Missing argument", "train --help"]),
        (["ask", "runs/none/export", "README.md", " "], ["question is empty"]),
        (["train", RECIPE, "--rank", "2"], ["--rank", "--ranks"]),
        (["train", RECIPE, "--ranks", "abc"], ["--ranks", "integer"]),
        (["train", RECIPE, "--resume", "maybe"], ["maybe", "auto"]),
        (["shard", "shards/cards/minibabel.yaml", "--out", "README.md/x"], ["Not a directory", "README.md/x"]),
    ],
)
def test_a_wrong_call(words: list[object], parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    message = _says(capsys, monkeypatch, *words)
    assert all(part in message for part in parts), message


def test_what_training_would_refuse_is_refused_before_the_teacher_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ("--set", f"data.root={tmp_path / 'data'}", "--set", f"runs={tmp_path / 'runs'}")
    message = _says(capsys, monkeypatch, "run", RECIPE, *places, "--ranks", "3")
    assert "3 ranks" in message and "nearest: 2" in message
    message = _says(capsys, monkeypatch, "run", RECIPE, *places, "--set", "student.lora={targets: [q_prj]}")
    assert "q_prj" in message and "did you mean `q_proj`" in message
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_of_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.json").write_text('{"tracking_uri": ', encoding="utf-8")
    message = _says(capsys, monkeypatch, "sync", tmp_path, code=1)
    assert "mlflow.json" in message and "not readable as JSON" in message


def test_a_wrong_card(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"name": "mine", "version": "v1", "licence": "CC0", "source": {"kind": "espeek"}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(card), encoding="utf-8")
    message = _says(capsys, monkeypatch, "shard", path, "--out", tmp_path / "data")
    assert "espeek" in message and "did you mean `espeak`" in message and str(path) in message
    card["source"] = {"kind": "jsonl", "file": "rows.jsonl", "root": "sounds"}
    path.write_text(yaml.safe_dump(card), encoding="utf-8")
    message = _says(capsys, monkeypatch, "shard", path, "--out", tmp_path / "data")
    assert str(tmp_path / "sounds") in message and "source.root" in message
    message = _says(capsys, monkeypatch, "check", ROOT / "shards/cards/minibable.yaml")
    assert "did you mean" in message and "minibabel.yaml" in message


def test_a_rank_count_that_the_plan_cannot_deal_out(workshop: Path) -> None:
    """With shards in place: nothing is started."""
    done = here("train", workshop / "recipe.yaml", "--ranks", 3)
    assert done.returncode == 2 and "3 ranks cannot share 4 micro-batches" in done.stderr and done.stderr.count("\n") == 1
    assert not (workshop / "runs" / "meta_prompt_kd").exists()


def test_a_damaged_export(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sound = next((ROOT / "tests").rglob("*.py"))
    folder = tmp_path / "export"
    message = _says(capsys, monkeypatch, "ask", exported, tmp_path / "no.wav", "What?")
    assert "no.wav" in message
    message = _says(capsys, monkeypatch, "ask", exported, sound, "What?")
    assert "neither FLAC nor WAV" in message
    clip = tmp_path / "clip.wav"
    _write_wav(clip)
    message = _says(capsys, monkeypatch, "ask", tmp_path, clip, "What?")
    assert "is no export" in message
    shutil.copytree(exported, folder)
    (folder / "projector.safetensors").unlink()
    message = _says(capsys, monkeypatch, "ask", folder, clip, "What?")
    assert "projector.safetensors" in message and str(folder) in message
    shutil.rmtree(folder)
    shutil.copytree(exported, folder)
    manifest = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    manifest["files"]["../outside"] = "0"
    (folder / "export.json").write_text(json.dumps(manifest), encoding="utf-8")
    message = _says(capsys, monkeypatch, "ask", folder, clip, "What?")
    assert "outside" in message


def _write_wav(path: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write(path, np.zeros(16_000, np.float32), 16_000)
