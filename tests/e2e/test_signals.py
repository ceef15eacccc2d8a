"""Stored signals from teacher to student: declared in a recipe, scored, packed, read, trained on by two ranks; and what is refused."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from speechkd.core.errors import InputError
from speechkd.core.files import read_json, write_json
from speechkd.data.shards.index import open_shards
from speechkd.data.storage.manifest import with_self_digest
from speechkd.recipe import load_recipe
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import open_train_sources
from speechkd.stages.plan import plan
from speechkd.stages.teach import teach
from speechkd.tracking.journal import JOURNAL, metric_series
from tests.e2e.conftest import ROOT
from tests.e2e.several import train_several

SIGNALS = ["teachers.kd.signals={topk: {k: 16}, sampled: {draws: 20}}", "losses={topk_kl: {}, sampled_kd: {weight: 0.5}}"]


@pytest.fixture(scope="module")
def taught(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workshop's recipe on shards of its own, with a column that has signals. Models are named from the project's folder."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(ROOT)
    folder = tmp_path_factory.mktemp("signals")
    shutil.copytree(workshop / "data", folder / "data")
    for column in (folder / "data").glob("*/*/columns"):
        shutil.rmtree(column)
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"]["root"], recipe["runs"] = str(folder / "data"), str(folder / "runs")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), encoding="utf-8")
    teach(load_recipe(folder / "recipe.yaml", SIGNALS))
    monkeypatch.undo()
    return folder


def version(folder: Path) -> Path:
    (manifest,) = folder.glob("data/*/*/manifest.json")
    return manifest.parent


def refusal(folder: Path, *sets: str) -> str:
    """Why training would not start."""
    with pytest.raises(InputError) as refused:
        recipe = load_recipe(folder / "recipe.yaml", [*SIGNALS, *sets])
        open_train_sources(recipe, open_prompt(recipe.prompt, recipe.student.llm))
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_two_ranks_train_on_stored_signals(taught: Path) -> None:
    with contextlib.chdir(ROOT):
        train_several([load_recipe(taught / "recipe.yaml", [*SIGNALS, "train.regimes.kd.0.steps=4"])])
    series = metric_series(taught / "runs" / "meta_prompt_kd" / JOURNAL)
    for name in ("train/loss_topk_kl", "train/loss_sampled_kd"):
        values = [value for _, value in series[name]]
        assert len(values) == 4 and all(0 < value < 50 for value in values)


@pytest.mark.parametrize(
    ("sets", "pattern"),
    [
        (["teachers.kd.signals.topk.k=8"], r"`signals.topk.k` 16, the recipe has 8: run `speechkd teach`"),
        (["teachers.kd.signals.topk.bits=16"], r"`signals.topk.bits` 8, the recipe has 16"),
        (["losses.topk_kl.temperature=2.0"], r"loss `topk_kl` has temperature 2, but teacher `kd` stores `topk` at 1"),
        (["losses.topk_kl.temperature=2.0", "teachers.kd.signals.topk.temperature=2"], r"`signals.topk.temperature` 1, the recipe has 2"),
        (
            ["teachers.kd.signals={topk: {k: 16}}"],
            r"needs `sampled`, but teacher `kd` .* it can store `sampled`: set `teachers.kd.signals`",
        ),
        (
            ["teachers.kd.signals.hidden={layers: [2]}"],
            r"no loss of this recipe reads stored `hidden`: leave `teachers.kd.signals.hidden` out",
        ),
        (["teachers.kd.signals.projected={}"], r"unknown key `projected`; allowed: attention, hidden, sampled, topk"),
    ],
)
def test_what_the_column_does_not_hold_is_refused(taught: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str], pattern: str) -> None:
    monkeypatch.chdir(ROOT)
    assert re.search(pattern, refusal(taught, *sets)), refusal(taught, *sets)


def test_another_template_is_refused(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = Path("shards/prompts/meta_prompt.j2").read_text(encoding="utf-8")
    (tmp_path / "meta_prompt.j2").write_text(f"Now: {text}", encoding="utf-8")
    assert "made with another `template`" in refusal(taught, f"prompt.template={tmp_path / 'meta_prompt.j2'}")


def republished(taught: Path, tmp_path: Path, change: dict[str, Any]) -> Path:
    """A copy whose column says something else under the same name, with every digest in order: as a foreign tool could have made it."""
    folder = Path(shutil.copytree(taught, tmp_path / "copy"))
    (path,) = version(folder).glob("columns/*/manifest.json")
    manifest = read_json(path)
    del manifest["sha256"]
    for key, value in change.items():
        (manifest if key == "base" else manifest["spec"])[key] = value
    write_json(path, with_self_digest(manifest))
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8").replace(str(taught), str(folder))
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"tokenizer": "0" * 64}, r"was made with another `tokenizer`"),
        ({"vocab_size": 99999}, r"was made with `vocab_size` 99999, the recipe has \d+"),
        ({"base": "0" * 64}, r"belongs to base 000000000000, these shards are"),
    ],
)
def test_a_column_for_another_student_or_base_is_refused(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], pattern: str
) -> None:
    monkeypatch.chdir(ROOT)
    message = refusal(republished(taught, tmp_path, change))
    assert re.search(pattern, message), message


def test_the_plan_knows_what_signals_weigh(taught: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its bytes of top-k are the stored ones, without the names around them."""
    monkeypatch.chdir(ROOT)
    assert plan(load_recipe(taught / "recipe.yaml", SIGNALS), 2, 500.0) == 0
    message = capsys.readouterr().out
    shards = open_shards(version(taught))
    (column,) = [shards.column(name) for name in shards.column_names()]
    totals = column.manifest["totals"]
    assert (
        f"{totals['examples']:,} turns" in message and f"{totals['tokens']:,} response tokens" in message and "at 500 tokens/s" in message
    )
    topk = column.spec.signals.topk
    assert topk is not None and f"topk {topk.row_bytes(column.spec.vocab_size) * totals['tokens'] / 1024:.1f} KiB" in message
    capsys.readouterr()
    assert plan(load_recipe(taught / "recipe.yaml", [*SIGNALS, f"data.root={taught / 'nowhere'}"]), 2) == 0
    message = capsys.readouterr().out
    assert f"{len(shards):,} samples" in message and "at most: max_new_tokens 40 a turn" in message and "data        not ready" in message
