"""What docs/operations.md says about the keys that may change when a run is continued is what the recipe's digest says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from speechkd.recipe import Recipe, load_recipe
from speechkd.teachers.openai_http import OpenAIHttpConfig
from speechkd.train.config import TrainConfig
from tests.consistency.house import ROOT

RECIPE = ROOT / "pipelines/meta_prompt_kd.yaml"
OTHER = {
    "paper": "x", "description": "x", "tracking": "{uri: null}", "evaluation.limit": 7, "data.root": "elsewhere", "train.log_every": 3,
    "train.checkpoint_every": 7, "train.keep_checkpoints": 5, "train.keep_every": 9, "train.copy_to": "elsewhere", "train.max_nonfinite": 3,
    "train.stall_s": 60, "train.peak_tflops": 5, "train.prefetch": 5, "train.prefetch_gib": 2, "train.workers": 0,
    "train.accept_grown_data": "true", "train.held_out": "{split: test_known}", "train.profile": "{from: 2, steps: 1}",
}  # fmt: skip


@pytest.fixture(scope="module")
def stated() -> set[str]:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = text[text.index("**What may change.**") : text.index("**Longer training.**")]
    return {key for line in re.findall(r"^\| (`.*?) \|", table, flags=re.M) for key in re.findall(r"`([^`]+)`", line)}


def test_they_change_no_digest(stated: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plain = {key for key in stated if "<" not in key and not key.startswith(".")}
    assert {key.partition(".")[0] if key.startswith("evaluation") else key for key in OTHER} == plain
    digest = load_recipe(RECIPE).digest()
    assert {key for key, value in OTHER.items() if load_recipe(RECIPE, [f"{key}={value}"]).digest() != digest} == set()


def test_no_key_of_training_and_of_servers_is_missing(stated: set[str]) -> None:
    """Every other key of `train` says what is trained."""
    assert {f"train.{name}" for name in TrainConfig.model_fields} - stated == {"train.regime", "train.regimes", "train.spike"}
    assert OpenAIHttpConfig.OPERATIONAL == {key.rpartition(".")[2] for key in stated if key.startswith((".", "teachers."))}


def test_the_rest_of_a_recipe_makes_another_run(stated: set[str]) -> None:
    trained = set(load_recipe(Path(RECIPE)).trained_by()) | {"gates", "train", "teachers", "name", "runs", "objective", "objectives"}
    assert set(Recipe.model_fields) - trained == {"paper", "description", "tracking", "evaluation"} <= stated
