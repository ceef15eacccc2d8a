"""The papers' students on the meta device: sizes and LoRA modules follow from configuration files alone. And what a student starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.losses.base import LayerConfig
from speechkd.models.exported import read_manifest, trained_tensors
from speechkd.models.lora import LoraConfig, lora_layers
from speechkd.models.student import meta_student
from speechkd.models.student_config import StudentConfig
from speechkd.recipe import load_recipe
from speechkd.stages.assembly.preflight import check_method
from speechkd.stages.assembly.student import build_student, check_init_export
from tests.teachers.speech_models import write_student

ROOT = Path(__file__).parents[3]

PLANNED = {  # parameters in all, modules with LoRA; the papers' own figures where they have one
    "wong26a": (637.0e6, 9241.7e6, 0),
    "lang_aware_paper": (637.0e6, 8030.3e6, 0),
    "cross_modal_paper": (639.6e6, 7615.6e6, 28 * 7),
    "source_layer_paper": (639.6e6, 7615.6e6, 28 * 7),
    "pl_distill_paper": (637.0e6, 494.0e6, 169),
}


@pytest.mark.parametrize("name", PLANNED)
def test_the_papers_students_are_built_from_configuration_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(Path(f"pipelines/{name}.yaml"))
    student = meta_student(recipe.student)
    adapters = lora_layers(student)
    added = sum(p.numel() for layer in lora_layers(student.llm).values() for p in (layer.lora_A, layer.lora_B))
    sizes = [sum(p.numel() for p in part.parameters()) for part in (student.encoder, student.llm)]
    assert [sizes[0], sizes[1] - added] == pytest.approx(PLANNED[name][:2], rel=1e-4) and len(adapters) == PLANNED[name][2]
    if name == "pl_distill_paper":
        assert [n for n in adapters if not n.startswith("llm.")] == ["projector.linear"]
    notes = check_method(recipe, dry=True)
    assert all("on this machine" in note for note in notes), "everything else is known without the hub"
    if name == "source_layer_paper":
        config = load_recipe(Path(f"pipelines/{name}.yaml"), ["objective=skip"]).losses["skip"]
        assert isinstance(config, LayerConfig) and config.pairs(28, 36) == [(7, 9), (14, 18), (21, 27), (28, 36)]


def test_a_student_starts_from_an_export_that_is_built_like_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = write_student(tmp_path / "out")
    same = [f"student.init_from={folder}", "student.projector={kind: linear, pool: 5}", "student.normalise_layers=false"]
    same.append("student.encoder_window=full")

    def check(*changes: str) -> None:
        check_init_export(load_recipe(Path("pipelines/meta_prompt_kd.yaml"), [*same, *changes]).student)

    check()
    check("student.dtype=bfloat16", "student.lora={r: 2, targets: [q_proj]}")
    changes = {"projector": "student.projector.pool=4", "encoder_states": "student.encoder_states=last"}
    changes["encoder_window"] = "student.encoder_window=true"
    changes["normalise_layers"] = "student.normalise_layers=true"
    for name, change in changes.items():
        with pytest.raises(InputError, match=rf"another `{name}` than `student.{name}`: .* \(student.init_from\)$"):
            check(change)


def test_a_student_goes_on_with_the_lora_of_an_export_and_with_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = write_student(tmp_path / "out", LoraConfig(r=2, alpha=8.0, targets=["q_proj", "down_proj"]))
    same = [f"student.init_from={folder}", "student.projector={kind: linear, pool: 5}", "student.normalise_layers=false"]
    same += ["student.encoder_window=full", "student.dtype=float32"]

    def config(lora: str) -> StudentConfig:
        return load_recipe(Path("pipelines/meta_prompt_kd.yaml"), [*same, f"student.lora={lora}"]).student

    alike = config("{r: 2, alpha: 8, dropout: 0.1, targets: [q_proj, down_proj]}")
    check_init_export(alike)
    student, trained = build_student(alike, {"zero_optimization": {"stage": 2}}, seed=3), trained_tensors(folder, read_manifest(folder))
    found = dict(student.trainable())
    assert found.keys() == trained.keys() and any(".lora_B" in name and tensor.any() for name, tensor in trained.items())
    assert all(torch.equal(found[name].cpu(), tensor) for name, tensor in trained.items())
    for lora, key in (
        ("null", "lora"),
        ("{r: 4, alpha: 8, targets: [q_proj, down_proj]}", "r"),
        ("{r: 2, targets: [q_proj, down_proj]}", "alpha"),
    ):
        with pytest.raises(InputError, match=f"has LoRA with another `{key}` than `student.lora`: .*--merge.* \\(student.init_from\\)$"):
            check_init_export(config(lora))
