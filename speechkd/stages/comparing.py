"""`speechkd eval --against`: two runs on the same questions, with an interval and a significance test for each task."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.core.files import read_json_lines, write_json
from speechkd.core.log import say
from speechkd.evaluation.grading import grade
from speechkd.evaluation.intervals import paired
from speechkd.evaluation.runner import Prediction
from speechkd.evaluation.slices import speakers
from speechkd.recipe import Recipe
from speechkd.stages.evaluate import EVAL
from speechkd.stages.inputs.corpora import open_corpora

Key = tuple[str, str, str, str, str]
"""task, split, clip, question, reference"""


def compare(recipe: Recipe, graded: Path, other: Path) -> Path:
    """Compare the students' stored answers in evaluation folder `graded` with those of `other` (a run or an evaluation folder).

    Only questions that both answered count. Writes `against-<other>.json` beside the summary: task -> split -> difference. Raises
    InputError where the two have no question in common.
    """
    folder = other / EVAL if (other / EVAL).is_dir() else other
    out: dict[str, dict[str, dict[str, object]]] = {}
    for corpus in open_corpora(recipe.data):
        name = f"predictions-{corpus.card.name}.jsonl"
        ours, theirs = _answers(graded / name), _answers(folder / name)
        metadata = {sample.key: sample.metadata for sample in corpus.shards.samples()}
        for task, split in dict.fromkeys((key[0], key[1]) for key in ours if key in theirs):
            both = [key for key in ours if key[:2] == (task, split) and key in theirs]
            a, b = [ours[key] for key in both], [theirs[key] for key in both]
            groups = speakers(a, metadata) or [p.key for p in a]
            found = paired(grade(a, corpus.card.tasks), grade(b, corpus.card.tasks), groups)
            if found is not None:
                out.setdefault(task, {})[split] = asdict(found)
                between = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
                say(
                    f"eval: task `{task}`, split `{split}`: {100 * found.value:+.1f} points {between} "
                    f"against `{other}`, p = {found.p:.2g}, n = {found.n} of {found.groups} speakers or clips"
                )
    if not out:
        raise InputError(f"`{graded}` and `{folder}` have no graded question in common (--against names a run or its eval folder)")
    path = graded / f"against-{other.resolve().name}.json"
    write_json(path, out)
    return path


def _answers(path: Path) -> dict[Key, Prediction]:
    """The student's answers of one file; empty where there is none."""
    if not path.is_file():
        return {}
    rows = (row for row in read_json_lines(path) if row.pop("system") == "student")
    return {(p.task, p.split, p.key, p.question, p.reference): p for p in (Prediction(**row) for row in rows)}
