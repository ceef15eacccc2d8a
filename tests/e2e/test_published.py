"""The papers' recipes run as they are: every stage on two ranks, and every objective and regime; models, corpora and steps alone are small.

What fails here would fail on a cluster, after the queue. Layout, splits and tasks are those of the cards that ship.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechkd.core.files import read_json
from speechkd.data.shards.index import open_shards
from speechkd.recipe import Recipe, load_recipe
from speechkd.stages.run import run
from speechkd.stages.shard import shard
from tests.data.corpus import write_echo
from tests.e2e.conftest import ROOT
from tests.e2e.published import cota, librispeech, open_orca, over, ravdess, six_languages, write_models
from tests.e2e.several import train_several, trained
from tests.e2e.variants import OTHERS, SMALL

STEPS = 2
HALVES = {name: {"share": 0.25} for name in ("dev", "test")}


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models, raw corpora, and cards over the shipped ones."""
    folder = tmp_path_factory.mktemp("published")
    write_models(folder / "models")
    for write_raw in (librispeech, ravdess, cota, open_orca, six_languages):
        write_raw(folder / "raw")
    over(folder, "open_orca_spoken", hold_out=HALVES)
    over(folder, "cota", hold_out=HALVES)
    return folder


def recipe_of(folder: Path, name: str, changes: list[str]) -> Recipe:
    """The recipe in the small world."""
    regimes = load_recipe(ROOT / f"pipelines/{name}.yaml").train.regimes
    steps = [f"train.regimes.{regime}.{i}.steps={STEPS}" for regime, phases in regimes.items() for i in range(len(phases))]
    places = [f"runs={folder}/runs", f"data.root={folder}/data", "tracking.uri=null", "train.log_every=1", "evaluation.max_new_tokens=4"]
    sets = [*steps, *places, *SMALL[name], *changes]
    return load_recipe(
        ROOT / f"pipelines/{name}.yaml", [s.replace("MODELS", f"{folder}/models").replace("CARDS", str(folder)) for s in sets]
    )


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMALL)
def test_a_papers_recipe_runs_to_its_report(name: str, small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SPEECHKD_DATA", str(small_world / "raw"))
    recipe = recipe_of(small_world, name, [])
    if name == "source_layer_paper":  # the student's descriptions, made before
        write_echo(open_shards(shard(Path(recipe.data.corpora[0].card), recipe.data.root)))
    assert run(recipe, 2) == 0
    trained(recipe)
    summary = read_json(recipe.run_dir / "summary.json")
    assert summary["tasks"] and (recipe.run_dir / "report.html").is_file()
    scores = [row for task, row in summary["tasks"].items() if task.split("/")[-1] in (recipe.evaluation.tasks or [task])]
    assert any(row["n"] and row["unseen_n"] for row in scores)
    if name == "cross_modal_paper":
        both_channels(recipe)


def both_channels(recipe: Recipe) -> None:
    """Questions were spoken, heard and read; the dataset's words and the teacher's own are both there to learn from."""
    shards = open_shards(Path(recipe.data.root, "open_orca_spoken/v1"))
    assert all(sample.seconds > 0.5 and sample.metadata["voice"] for sample in shards.samples())
    column = shards.column(next(name for name in shards.column_names() if name.startswith("kd-")))
    turns = column.table["turn"].to_pylist()
    assert turns.count("spoken") == len(shards) and 0 < turns.count("written") < len(shards)
    row = read_json(recipe.run_dir / "summary.json")["tasks"]["answer"]
    assert row["teacher"] is not None and row["reads"] is not None and row["student"] is not None
    predictions = [json.loads(line) for line in (recipe.run_dir / "eval/predictions-open_orca_spoken.jsonl").read_text().splitlines()]
    assert {line["system"] for line in predictions} >= {"student", "reads", "teacher", "untrained"} and all(
        line["question"] == "" for line in predictions
    )


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_objective_and_regime_of_a_papers_recipe_trains(name: str, small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SPEECHKD_DATA", str(small_world / "raw"))
    test = ["deepspeed=ds_configs/zero3_test.json", "plan.micro_batches=4"]
    recipes = [recipe_of(small_world, name, [*test, *changes, f"name={name}-{i}"]) for i, changes in enumerate(OTHERS[name])]
    for corpus in recipes[0].data.corpora:
        shards = open_shards(shard(Path(corpus.card), recipes[0].data.root))
        if name == "source_layer_paper" and "echo" not in shards.column_names():
            write_echo(shards)
    train_several(recipes)
