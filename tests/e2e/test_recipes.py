"""Every recipe that ships trains, exports and answers: a few steps on a corpus of a minute, two ZeRO-3 ranks, real columns."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pytest
import yaml

from speechkd.core.files import read_json
from speechkd.models import load_student
from speechkd.recipe import Recipe, load_recipe
from speechkd.stages.export import export_run
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import open_train_sources
from speechkd.stages.teach import teach
from tests.e2e.conftest import ROOT
from tests.e2e.several import train_several
from tests.e2e.variants import CHANGES, EVERY, LAYER_AC, RECIPES, TRAINED


@pytest.fixture(scope="module")
def shipped(workshop: Path, exported: Path) -> dict[str, Recipe]:
    """Every recipe that ships by its file's name, trained for a few steps, all in one launch of ranks."""
    with contextlib.chdir(ROOT):
        recipes = {name: load_recipe(*varied(workshop, exported, name, "")) for name in RECIPES}
        train_several([*recipes.values()])
    return recipes


def small(workshop: Path, exported: Path, name: str) -> Path:
    """The recipe on the workshop's corpus, four steps a phase."""
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    written = yaml.safe_load((ROOT / "pipelines" / name).read_text(encoding="utf-8"))
    parent = written.pop("extends", None)
    if parent:
        base = yaml.safe_load((ROOT / "pipelines" / parent).read_text(encoding="utf-8"))
        written["losses"] = base["losses"] | written["losses"]
        written["train"] = {"regimes": base["train"]["regimes"] | written.get("train", {}).get("regimes", {})} | {
            "regime": written.get("train", {}).get("regime", base["train"]["regime"])
        }
    regimes = {regime: [{**phase, "steps": 4} for phase in phases] for regime, phases in written["train"]["regimes"].items()}
    if "prompt" in written:
        recipe["prompt"] |= written["prompt"]
    recipe |= {key: written[key] for key in ("live", "objective", "objectives", "losses", "paper") if key in written}
    recipe["student"] |= written.get("student", {})
    for role, block in written.get("teachers", {}).items():
        if "signals" in block:
            recipe["teachers"][role]["signals"] = block["signals"]
    recipe["train"] |= {"regime": written["train"]["regime"], "regimes": regimes, "checkpoint_every": 4}
    if "languages" in recipe["student"]["projector"]:
        recipe["student"]["projector"]["languages"] = recipe["student"]["projector"]["languages"][:2]
    if "hearer" in recipe.get("live", {}):
        recipe["live"]["hearer"]["model"] = str(exported)
    path = workshop / f"small-{name}"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def varied(workshop: Path, exported: Path, name: str, change: str) -> tuple[Path, list[str]]:
    """A small form of the recipe, and what is set over it: a name of its own, and the change."""
    return small(workshop, exported, name), [
        f"name={Path(name).stem}-{EVERY.index((name, change))}",
        *shlex.split(change.replace("EXPORT", str(exported))),
    ]


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_every_other_objective_and_regime_trains(workshop: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    train_several([load_recipe(*varied(workshop, exported, name, change)) for name, change in TRAINED])


@pytest.mark.torture
def test_a_teacher_reads_what_the_start_wrote_about_the_clips(workshop: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path in the head of source_layer.yaml: a trained student describes every clip, and an LLM that reads that teaches it further."""
    monkeypatch.chdir(ROOT)
    snapshot = f"teachers.kd={{backend: snapshot, model: {exported}, max_new_tokens: 40}}"
    asked = ["prompt.tasks=false", "prompt.instructions=[Describe the audio.]"]
    (column,) = teach(load_recipe(workshop / "recipe.yaml", ["name=described", snapshot, *asked]))
    assert column is not None and set(column.read_index(["turn"])["turn"].to_pylist()) == {"open-0"}
    path, changes = small(workshop, exported, "source_layer.yaml"), shlex.split(LAYER_AC.replace("EXPORT", str(exported)))
    reader = f"live.reader={{kind: text_llm, model: standins/llm, reads: {{form: column, column: {column.name}}}}}"
    recipe = load_recipe(path, [*changes, "name=reads-descriptions", reader])
    (train_source,) = open_train_sources(recipe, open_prompt(recipe.prompt, recipe.student.llm))
    row = train_source.plan_source.row(0)
    answers = {column.key_of(number): column.read(number).text for number in range(len(column.table))}
    assert train_source.words(row) == {column.name: answers[train_source.reader.read(row, hear=False).key]}
    train_several([recipe])


@pytest.mark.system
@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_trains_and_exports(shipped: dict[str, Recipe], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exports(shipped[name])


@pytest.mark.torture
@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_another_form_of_a_recipe_trains_and_exports(
    workshop: Path, exported: Path, name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(*varied(workshop, exported, name, change))
    train_several([recipe])
    exports(recipe)


def exports(recipe: Recipe) -> None:
    """A trained run becomes an export with training's logits, and with LoRA also a merged one."""
    folder = recipe.run_dir
    out = export_run(recipe, folder / "export")
    assert read_json(out / "export.json")["probe_difference"] <= 1e-5
    if recipe.student.lora:
        assert (out / "lora/adapter_model.safetensors").is_file()
        merged = read_json(export_run(recipe, folder / "merged", merge=True) / "export.json")
        assert merged["merged"] and merged["student"]["lora"] is None and (folder / "merged/llm/config.json").is_file()
        assert merged["probe_difference"] <= 1e-5
        load_student(folder / "merged")
