"""Answers are stored as they come: a killed evaluation asks nothing twice, and the union of partitions is the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from speechkd.data.cards import Task
from speechkd.data.shards.index import Sample
from speechkd.evaluation.questions import EvaluationConfig, Question
from speechkd.evaluation.report_details import details_of
from speechkd.evaluation.runner import Prediction, Runner
from speechkd.evaluation.scorers.parsers import ParsersConfig
from speechkd.evaluation.summary import TaskSummary
from speechkd.teachers.answers import AnswerJournal

ASKED = [
    Question(
        "digits", "test", Sample(f"k{i}", 0, i, "test", 1.0 + i % 3, {"language": "german", "speaker": f"s{i % 4}"}, ""), "Which?", "drei"
    )
    for i in range(23)
]


class Killed(BaseException):
    """The process went away."""


def asking(asked: list[str], dies_after: int = 1000) -> Callable[[Sequence[Question]], list[str]]:
    """Answers with the clip's key, notes whom it was asked about, and dies."""

    def ask(batch: Sequence[Question]) -> list[str]:
        if len(asked) >= dies_after:
            raise Killed
        asked.extend(q.sample.key for q in batch)
        return [f"answer {q.sample.key} of {len(batch)}" for q in batch]

    return ask


def runner(folder: Path, partition: tuple[int, int] = (0, 1)) -> Runner:
    return Runner(journal=AnswerJournal(folder / "answers.jsonl"), batch_size=4, partition=partition)


def test_a_killed_evaluation_resumes_and_asks_nothing_again(tmp_path: Path) -> None:
    asked: list[str] = []
    whole = runner(tmp_path / "whole").run("student", "x", asking([]), ASKED)
    with pytest.raises(Killed):
        runner(tmp_path / "killed").run("student", "x", asking(asked, 10), ASKED)
    assert len(asked) == 12
    resumed = runner(tmp_path / "killed").run("student", "x", asking(asked), ASKED)
    assert resumed == whole and sorted(asked) == sorted(q.sample.key for q in ASKED)
    assert runner(tmp_path / "killed").run("student", "x", asking(asked, 0), ASKED) == whole, "no model is needed"
    with pytest.raises(Killed):  # another student's answers are no use
        runner(tmp_path / "killed").run("student", "another", asking(asked, 0), ASKED)


def test_more_questions_ask_only_the_new_ones(tmp_path: Path) -> None:
    asked: list[str] = []
    runner(tmp_path).run("student", "x", asking([]), ASKED[:9])
    assert runner(tmp_path).run("student", "x", asking(asked), ASKED) is not None
    assert sorted(asked) == sorted(q.sample.key for q in ASKED[9:])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_union_of_partitions_is_the_whole(tmp_path: Path, order: tuple[int, ...]) -> None:
    whole = runner(tmp_path / "whole").run("student", "x", asking([]), ASKED)
    shares: list[list[str]] = [[], [], []]
    found = [runner(tmp_path, (part, 3)).run("student", "x", asking(shares[part]), ASKED) for part in order]
    assert found[:2] == [None, None] and found[2] == whole
    assert sorted(key for share in shares for key in share) == sorted(q.sample.key for q in ASKED) and all(shares)


def summary_of(answers: Sequence[str], references: Sequence[str], task: Task, instructions: Sequence[str] = ()) -> dict[str, object]:
    asked, given = [], []
    for i, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        metadata = {"language": ("german", "french")[i % 2], "speaker": f"s{i % 5}"}
        instruction = instructions[i] if instructions else "Which?"
        asked.append(Question("t", "test", Sample(f"k{i}", 0, i, "test", 1.0, metadata, ""), instruction, reference))
        given.append(Prediction("t", "test", f"k{i}", instruction, reference, answer))
    config = EvaluationConfig(splits={"student": "test"}, parsers=ParsersConfig())
    predictions = {"student": given, "teacher": given[:3], "shuffled": given[1:], "shuffled-2": given[2:]}
    return TaskSummary(config=config, name="t", task=task, asked=asked, predictions=predictions).row()


WORDS = Task(instruction="Which?", field="f", kind="words", choices=["drei", "neun", "eins"])


def test_the_summary_of_a_student_that_recites_says_so() -> None:
    """By hits alone these answers were all right, and the page said so."""
    row = summary_of(["drei drei neun", "eins eins eins"] * 10, ["drei drei", "eins"] * 10, WORDS)
    assert row["student"] == 1 - 30 / 30 and row["counts"] == {"right": 0}
    assert row["edits"] == {"substitutions": 0, "deletions": 0, "insertions": 30, "total": 30}
    assert isinstance(row["shuffled"], float) and row["shuffled"] < 0, "someone else's words are worse than none"
    page = details_of(row)
    assert ("errors", "0 substitutions, 0 deletions, 30 insertions, of 30 units") in page.lines
    assert [(field, value, n) for field, value, _, n in page.groups] == [("language", "french", 10), ("language", "german", 10)]


def test_a_student_within_its_controls_interval_is_flagged() -> None:
    task = Task(instruction="Which?", field="f", kind="choice", choices=["f", "m"])
    deaf = summary_of(["f"] * 20, ["f", "m"] * 10, task)
    assert deaf["hears"] is False and deaf["shuffled"] == 0.5 and "not shown to hear" in details_of(deaf).warning
    hears = summary_of(["f", "m"] * 10, ["f", "m"] * 10, task)
    assert hears["hears"] is True and hears["shuffled"] == 0.5 and details_of(hears).warning == ""
    assert hears["permutation"]["p"] < 1e-4 and hears["figures"] == {"wa": 1, "ua": 1, "macro_f1": 1}  # type: ignore[index]
    assert hears["parsers"]["mmau"] == {"value": 1.0, "unparsable": 0}  # type: ignore[index]


def test_where_questions_differ_the_control_is_the_mean_of_the_derangements() -> None:
    answers, references = ["drei", "neun", "eins", "drei"], ["drei", "neun", "drei", "drei"]
    row = summary_of(answers, references, WORDS, instructions=["a", "b", "c", "d"])
    assert row["derangements"] == [2 / 3, 1 / 2] and row["shuffled"] == pytest.approx(7 / 12) and "permutation" not in row


@pytest.mark.parametrize(
    "broken", [{"intervals": [1], "edits": {"total": "x"}, "parsers": 3}, {"slices": {"a": {"b": None}}, "permutation": {"p": 1}}]
)
def test_a_broken_summary_gives_fewer_details(broken: dict[str, object]) -> None:
    found = details_of(broken)
    assert found.lines == [] and found.groups == [] and found.interval is None
