"""Every recipe and card that ships loads, and what it names is there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from speechkd.core.config import read_yaml
from speechkd.core.errors import InputError
from speechkd.data.cards import load_card
from speechkd.engine.ds_config import read_ds_config
from speechkd.recipe import Recipe, load_recipe, recipe_data
from tests.consistency.house import ROOT, document_commands, short
from tests.e2e.variants import EVERY, OTHERS

RECIPES = sorted((ROOT / "pipelines").glob("*.yaml"))
CARDS = sorted((ROOT / "shards/cards").glob("*.yaml"))
MINIATURES = sorted((ROOT / "pipelines/miniatures").glob("*.yaml"))
DS_CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in a recipe are relative to the folder where speechkd runs."""
    monkeypatch.chdir(ROOT)


def models(recipe: Recipe) -> set[str]:
    """Model names of the student and of every teacher; exports that another recipe makes apart."""
    teachers = [*recipe.teachers.values(), *recipe.live.values()]
    named = {str(getattr(teacher, "model")) for teacher in teachers if hasattr(teacher, "model")}
    return {recipe.student.encoder, recipe.student.llm, *(name for name in named if not name.startswith("runs/"))}


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_recipe_names_what_exists(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.paper and recipe.description
    for corpus in recipe.data.corpora:
        load_card(Path(corpus.card))
    assert Path(recipe.prompt.template).is_file()
    read_ds_config(Path(recipe.deepspeed))
    for name in models(recipe):
        in_house = (ROOT / name.split("/")[0]).exists()
        assert Path(name, "config.json").is_file() if in_house else name.count("/") == 1, f"{name}: neither a folder here nor a hub id"
        if not in_house and recipe.student.config_root:
            assert Path(recipe.student.config_root, name, "config.json").is_file(), "the dry run builds it from this file"


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_every_regime_of_a_recipe_is_whole(path: Path) -> None:
    for regime in load_recipe(path).train.regimes:
        assert load_recipe(path, [f"train.regime={regime}"]).train.steps > 0


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_every_objective_and_regime_is_trained_by_a_test(path: Path) -> None:
    """On two ranks (tests/e2e). Regimes that a file takes from the one that it extends are trained there."""
    written, whole = read_yaml(path), recipe_data(path)
    changes = [shlex.split(change) for name, change in EVERY if name == path.name] or [[], *OTHERS[path.stem]]
    runs = [recipe_data(path, change) for change in changes]
    assert {*whole.get("objectives", {})} <= {run.get("objective", "") for run in runs}
    assert {*written.get("train", {}).get("regimes", {})} <= {run["train"]["regime"] for run in runs}


def test_names_are_given_once() -> None:
    names = [load_recipe(path).name for path in RECIPES]
    assert names and len(set(names)) == len(names), "two recipes would share a run folder"


@pytest.mark.parametrize("path", CARDS, ids=short)
def test_card_is_valid_and_says_whose_it_is(path: Path) -> None:
    card = load_card(path)
    assert card.name == path.stem and card.homepage and card.description and card.tasks


@pytest.mark.parametrize("path", DS_CONFIGS, ids=short)
def test_deepspeed_file_says_only_memory_and_communication(path: Path) -> None:
    read_ds_config(path)


def documented_sets() -> list[tuple[str, str, list[str]]]:
    """(document, recipe, its --set values) of every documented command on a recipe that ships."""
    found = []
    for doc, words in document_commands("speechkd"):
        recipe = next((word for word in words if word.startswith("pipelines/") and (ROOT / word).is_file()), None)
        sets = [after for before, after in zip(words, words[1:], strict=False) if before == "--set"]
        if recipe and sets:
            found.append((doc, recipe, sets))
    return found


@pytest.mark.parametrize(("doc", "recipe", "sets"), documented_sets())
def test_documented_override_is_accepted(doc: str, recipe: str, sets: list[str]) -> None:
    load_recipe(ROOT / recipe, sets)


def test_overrides_are_documented() -> None:
    assert documented_sets()


@pytest.mark.parametrize("key", ["trian.regime=kd", "train.regime=kdd", "losses.respnse_ce.weight=1"])
def test_misspelt_override_is_refused_with_the_nearest(key: str) -> None:
    for path in RECIPES:
        with pytest.raises(InputError, match="did you mean"):
            load_recipe(path, [key])


@pytest.mark.parametrize("path", MINIATURES, ids=short)
def test_every_variant_of_a_miniature_is_a_recipe(path: Path) -> None:
    mini = read_yaml(path)
    assert mini["claim"] and len(set(mini["seeds"])) >= 3 and len(mini["variants"]) >= 2
    digests = {load_recipe(Path(mini["recipe"]), [*mini["set"], *sets]).digest() for sets in mini["variants"].values()}
    assert len(digests) == len(mini["variants"]), "two variants are the same"
