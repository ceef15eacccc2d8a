"""`speechkd export` refuses what it could not do truly, before it reads a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechkd.core.errors import InputError
from speechkd.recipe import recipe_data
from speechkd.stages.export import export, export_foreign

ROOT = Path(__file__).parents[2]


def run_folder(folder: Path, *sets: str) -> Path:
    """A run that has not saved anything yet."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_data(ROOT / "pipelines/cross_modal.yaml", sets)), encoding="utf-8")
    return folder


def test_lora_at_audio_positions_is_not_merged_into_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match="^`--merge` folds LoRA into every position.*audio positions only.*student.lora.scope"):
        export(run_folder(tmp_path, "student.lora.scope=audio"), tmp_path / "out", merge=True)


def test_what_has_lora_everywhere_or_is_not_merged_is_asked_for_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    on_projector = ("student.projector={kind: linear}", "student.lora={r: 2, targets: [linear], scope: audio}")  # hears nothing but audio
    for sets, merge in (((), True), (("student.lora.scope=audio",), False), (on_projector, True)):
        with pytest.raises(InputError, match="no valid checkpoint"):
            export(run_folder(tmp_path, *sets), tmp_path / "out", merge=merge)


def test_a_format_that_a_student_does_not_fit_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        InputError, match="^this student is no `qwen2_audio`: its encoder is `whisper`.*formats that fit it: speechkd"
    ) as caught:
        export_foreign(run_folder(tmp_path), tmp_path / "out", "qwen2_audio")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="unknown export format `gguf`; allowed: qwen2_audio, ultravox"):
        export_foreign(run_folder(tmp_path), tmp_path / "out", "gguf")


def test_the_paper_student_of_qwen2_audios_parts_fits_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = yaml.safe_dump(recipe_data(ROOT / "pipelines/pl_distill_paper.yaml", ()))
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(InputError, match="no valid checkpoint"):
        export_foreign(tmp_path, tmp_path / "out", "qwen2_audio")
