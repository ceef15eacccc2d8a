"""What an evaluation tells the run's journal, and so MLflow."""

from __future__ import annotations

from pathlib import Path

from speechkd.recipe import load_recipe
from speechkd.stages.results import publish_results
from speechkd.tracking.journal import JOURNAL, Journal, metric_series, read_journal
from speechkd.tracking.records import MEAN_SCORE

ROOT = Path(__file__).parents[2]
ROW = {"student": 0.9, "unseen": 0.8, "teacher": 1, "chance": 0.25, "shuffled": 0.2, "untrained": 0.0, "unparsable": 3, "n": 320}


def test_scores_are_charts_and_the_counts_behind_the_controls_are_not(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "pipelines/meta_prompt_kd.yaml", ["tracking.uri=null"])
    more = {"unseen_n": 320, "unseen_unparsable": 2, "shuffled_unparsable": 9, "teacher_unparsable": None, "splits": {"student": "test"}}
    publish_results(recipe.tracking, tmp_path, {"language": {**ROW, **more}}, step=7)
    charts = {f"eval/language/{name}": [(7, float(value))] for name, value in ROW.items()}
    assert metric_series(tmp_path / JOURNAL) == charts | {MEAN_SCORE: [(7, 0.9)]}


def test_results_belong_to_the_dataset_of_their_task(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "pipelines/meta_prompt_kd.yaml", ["tracking.uri=null"])
    journal = Journal(tmp_path / JOURNAL)
    journal.dataset("one", "1" * 64, {})
    journal.dataset("two", "2" * 64, {})
    publish_results(recipe.tracking, tmp_path, {"one/language": {"student": 0.5}, "two/language": {"student": 1.0}}, step=7)
    found = {tuple(record["values"]): record.get("dataset") for record in read_journal(tmp_path / JOURNAL) if record["kind"] == "metric"}
    one, two = ["one", "1" * 64], ["two", "2" * 64]
    assert found == {("eval/one/language/student",): one, ("eval/two/language/student",): two, (MEAN_SCORE,): None}
    assert metric_series(tmp_path / JOURNAL)[MEAN_SCORE] == [(7, 0.75)]
