"""The papers' students on the meta device: sizes and LoRA modules follow from configuration files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd.losses.base import LayerConfig
from speechkd.models.lora import lora_layers
from speechkd.recipe import load_recipe
from speechkd.stages.assembly.preflight import check_method
from speechkd.stages.assembly.student import meta_student

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
    assert all("is not on this machine" in note for note in notes), "everything else is known without the hub"
    if name == "source_layer_paper":
        config = load_recipe(Path(f"pipelines/{name}.yaml"), ["objective=skip"]).losses["skip"]
        assert isinstance(config, LayerConfig) and config.pairs(28, 36) == [(7, 9), (14, 18), (21, 27), (28, 36)]
