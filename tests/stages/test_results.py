"""What an evaluation tells the run's journal, and so MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd.core.files import write_json
from speechkd.recipe import load_recipe
from speechkd.stages.results import publish_results, show_results
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


def test_what_came_out_is_a_table_and_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty columns are left out, missing scores are dashes, counts are whole; the report is named once it is there."""
    tasks = {
        "language": ROW | {"splits": {"student": "test", "unseen": "other"}, "teacher": None},
        "digit words": {"student": 0.5, "n": 20},
    }
    write_json(tmp_path / "summary.json", {"tasks": tasks})
    show_results(tmp_path, tmp_path / "summary.json")
    assert capsys.readouterr().out.splitlines() == [
        "task         student  unseen  shuffled  untrained  chance    n  unparsable",
        "digit words   50.0 %       -         -          -       -   20           -",
        "language      90.0 %  80.0 %    20.0 %      0.0 %  25.0 %  320           3",
        f"summary  {tmp_path}/summary.json",
        f"report   none yet: `speechkd report {tmp_path}` writes it",
    ]
    (tmp_path / "report.html").write_text("page")
    show_results(tmp_path, tmp_path / "summary.json")
    assert capsys.readouterr().out.splitlines()[-1] == f"report   {tmp_path}/report.html"
