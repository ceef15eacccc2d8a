"""The verbs that only look: doctor, check, plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.core.files import write_json
from speechkd.stages.check import check
from speechkd.stages.doctor import examine
from speechkd.stages.doctor.examine import doctor
from speechkd.stages.plan import plan
from speechkd.stages.shard import shard
from tests.data.corpus import write_card, write_tones

ROOT = Path(__file__).parents[2]


def test_doctor_finds_everything_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(tmp_path, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["fail"] == 0
    expected = {"python", "torch", "deepspeed", "packages", "interface", "shared disk", "shared folder", "mlflow", "all-reduce", "clocks"}
    assert expected <= {finding["check"] for finding in report["findings"]}


def test_doctor_fails_with_a_line_for_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "_together", lambda own, profile, shared: (own, True))  # the ranks are tested in doctor/test_ranks.py
    assert doctor(tmp_path, mlflow="http://127.0.0.1:9") == 1
    (bad,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert "`http://127.0.0.1:9` is not reachable" in bad and " -> " in bad
    with pytest.raises(InputError, match="must not hold credentials"):
        doctor(tmp_path, mlflow="http://me:secret@host")
    with pytest.raises(InputError, match="no such folder"):
        doctor(tmp_path / "none")


def test_the_published_setting_is_planned_from_configuration_files_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whisper-large-v3's encoder and Gemma2-9b-it on the meta device: the counts that their makers publish."""
    from speechkd.recipe import load_recipe

    monkeypatch.chdir(ROOT)
    assert plan(load_recipe(Path("pipelines/wong26a.yaml")), 16) == 0
    message = capsys.readouterr().out
    assert "9,241,705,984 parameters" in message and "636,968,960 parameters" in message
    assert "145,827,584 trained" in message and "240000 x 16 micro-batches" in message and "GiB a rank on 16 ranks" in message


def test_the_published_teacher_writes_one_caption_a_clip_and_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the paper does not have is not in its recipe: task questions to the teacher, gates on its answers."""
    from speechkd.data.cards import load_card
    from speechkd.recipe import load_recipe
    from speechkd.teachers.prompts import requests

    monkeypatch.chdir(ROOT)
    recipe = load_recipe(Path("pipelines/wong26a.yaml"))
    assert not recipe.gates.active
    tasks = load_card(Path(recipe.data.corpora[0].card)).tasks
    clip = {"transcript": "he came the other day", "gender": "male", "language": "english"}

    def turns(role: str) -> list[str]:
        return [request.turn for request in requests(recipe.prompt, recipe.teachers[role].selected_tasks(tasks), "key", clip)]

    assert turns("kd") == ["open-0"] and recipe.prompt.questions() == [""]
    assert [turn for turn in turns("ift") if turn.startswith("task-")], "the labels' questions are there for the ift role"


def test_check_names_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shard(write_card(tmp_path, write_tones(tmp_path)), tmp_path / "out", quiet=True)
    assert check(root) == 0
    tar = root / "audio" / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    capsys.readouterr()
    assert check(root) == 1
    assert "000000.tar" in capsys.readouterr().out


def test_check_fails_where_all_that_it_tries_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_tones(tmp_path, 5)[:4]
    card = write_card(tmp_path, rows)
    unusable = [None, b"", b"hello" * 100]  # missing, empty, no audio
    for row, data in zip(rows[1:], unusable, strict=True):
        _spoil(tmp_path / "clips" / row["audio"], data)
    assert check(card) == 0, "one of them is good"
    _spoil(tmp_path / "clips" / rows[0]["audio"], b"RIFF\x00\x10\x00\x00WAVEfmt ")
    capsys.readouterr()
    assert check(card) == 1
    assert "all of the first 4 items are rejected" in capsys.readouterr().out


def test_half_a_surrogate_pair_is_shown_and_ends_in_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON may hold one in a value, a field's name or a path; it is spelt out wherever `check` and `shard` show it."""
    half = json.loads(r'"\ud83d"')
    rows = write_tones(tmp_path, 4)
    rows[0] |= {"hertz": f"low {half}"}
    rows[1] |= {f"field {half}": 1}
    rows[2] |= {"audio": f"{half}.wav"}
    task = {"instruction": "How high?", "field": "hertz", "kind": "choice", "choices": ["240"]}
    card = write_card(tmp_path, rows, tasks={"pitch": task}, quarantine_rate=1.0)
    assert check(card) == 0
    shown = capsys.readouterr().out
    assert "field \\ud83d 1" in shown and "look again" in shown
    shard(card, tmp_path / "out")
    assert check(tmp_path / "out/tones/v1") == 0 and "3 of 4 items in quarantine" in capsys.readouterr().err


def _spoil(path: Path, data: bytes | None) -> None:
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def test_a_dry_run_refuses_what_training_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 while shards or answers are missing; then a split that no corpus has is one line."""
    from speechkd.recipe import load_recipe
    from speechkd.stages.teach import teach

    monkeypatch.chdir(ROOT)
    task = {"instruction": "Which instrument?", "field": "speaker", "kind": "choice", "choices": ["organ0", "organ1", "organ2"]}
    card = write_card(tmp_path, write_tones(tmp_path), tasks={"instrument": task})
    ift = "train={regime: ift, regimes: {ift: [{name: ift, steps: 2, mix: {ift: 1}}]}}"
    sets = [f"data={{root: {tmp_path}/data, corpora: [{{card: {card}}}]}}", ift, "evaluation={splits: {student: test}}"]
    recipe = load_recipe(Path("pipelines/meta_prompt_kd.yaml"), sets)
    assert plan(recipe, 1, to_train=True) == 1 and plan(recipe, 1) == 0
    shard(card, tmp_path / "data", quiet=True)
    assert plan(recipe, 1, to_train=True) == 1
    teach(recipe)
    assert plan(recipe, 1, to_train=True) == 0 and "begins at step 0" in capsys.readouterr().out
    run = tmp_path / "run"
    write_json(run / "run.json", {"recipe": "0" * 64, "plan": "0" * 64})
    (run / "recipe.yaml").write_text((ROOT / "pipelines/meta_prompt_kd.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    before = {path: path.read_bytes() for path in run.iterdir()}
    begun = load_recipe(Path("pipelines/meta_prompt_kd.yaml"), [*sets, "name=run", f"runs={tmp_path}"])
    with pytest.raises(InputError, match="run folder `.*/run` belongs to another recipe"):
        plan(begun, 1, to_train=True)
    with pytest.raises(InputError, match="`--resume require`: no valid checkpoint"):
        plan(recipe.model_copy(update={"runs": str(tmp_path), "name": "none"}), 1, to_train=True, resume="require")
    assert {path: path.read_bytes() for path in run.iterdir()} == before and not (tmp_path / "none").exists()
    wrong = load_recipe(Path("pipelines/meta_prompt_kd.yaml"), [*sets[:2], "evaluation={splits: {student: tets}}"])
    with pytest.raises(InputError, match="unknown split `tets`; allowed: .*did you mean `test`.*evaluation.splits"):
        plan(wrong, 1, to_train=True)
    assert plan(wrong, 1) == 0
