"""`speechkd eval`: asks the exported student and the controls about audio, and grades their answers and the teachers' stored ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from speechkd.core.errors import InputError
from speechkd.core.files import digest, read_json, read_json_lines, write_json, write_text
from speechkd.core.log import say
from speechkd.data.audio.clips import encode_flac
from speechkd.data.cards import load_card
from speechkd.data.columns.column import Column
from speechkd.data.reader import Reader
from speechkd.evaluation.averages import averages
from speechkd.evaluation.grading import GRADING_VERSION, STRICT, grade
from speechkd.evaluation.judge import Judge
from speechkd.evaluation.questions import GRADING, EvaluationConfig, Question
from speechkd.evaluation.runner import Prediction
from speechkd.evaluation.summary import TEACHER, Row, TaskSummary
from speechkd.models.exported import MANIFEST, load_tokenizer, read_manifest
from speechkd.recipe import Recipe
from speechkd.stages.asking import ask_all
from speechkd.stages.export import export
from speechkd.stages.inputs.columns import column_spec
from speechkd.stages.inputs.corpora import Corpus, evaluation_questions, open_corpora
from speechkd.stages.inputs.names import check_evaluation_names
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.results import publish_results, show_results
from speechkd.stages.run_folder import NOT_THE_STUDENTS, other_data, same_recipe

SUMMARY, SAMPLES, EXPORT, EVAL = "summary.json", "samples.jsonl", "export", "eval"
Columns = Mapping[str, Column]
"""Teacher's role -> its published column"""


def evaluate(recipe: Recipe, exported: Path, out: Path, regrade: bool = False, partition: tuple[int, int] = (0, 1)) -> Path:
    """Evaluate the export folder `exported` into `out`: predictions per corpus, summary, samples. Does nothing where inputs are unchanged.

    Answers are stored as they come, and none that is stored is asked again. `partition` I of N asks its share and leaves the summary to
    whichever call finds all answers. `regrade` grades the stored answers again and runs no model; so does a call whose answers are all
    there, where grading has changed since. Raises InputError if they are of another export or answer other questions.
    """
    corpora = open_corpora(recipe.data)
    teachers = _teacher_columns(recipe, corpora)
    inputs = _inputs(recipe, exported, corpora, teachers)
    earlier = read_json(out / SUMMARY) if (out / SUMMARY).is_file() else {}
    answered = earlier.get("inputs") == inputs
    if regrade and not answered:
        raise InputError(f"nothing to regrade: `{out}` holds no answers of this export to these questions (run `speechkd eval` first)")
    if answered and earlier.get("grading") == _grading(recipe.evaluation) and not regrade:
        say(f"eval: `{out}` is up to date")
        return out
    tasks: dict[str, Row] = {}
    rows: list[dict[str, object]] = []
    for corpus, columns in zip(corpora, teachers, strict=True):
        asked = evaluation_questions(recipe.evaluation, corpus)
        if not asked:
            say(f"eval: corpus `{corpus.card.name}` has no tasks for the splits {sorted(recipe.evaluation.splits.values())}")
            continue
        stored = out / f"predictions-{corpus.card.name}.jsonl"
        predictions = _stored_predictions(stored) if answered else None
        if predictions is None and regrade:
            raise InputError(f"nothing to regrade: no `{stored}` (run `speechkd eval` without --regrade first)")
        if predictions is None:
            students = ask_all(recipe.evaluation, corpus, asked, exported, out, partition)
            if students is None:
                say(f"eval: partition {partition[0]} of {partition[1]} has asked its share; the call that finds all answers grades them")
                return out
            predictions = students | _teacher_answers(columns, asked)
            _write_predictions(stored, predictions)
        rows_of_tasks = _summary(recipe.evaluation, corpus, asked, predictions)
        _add_judgements(recipe, rows_of_tasks, predictions, out / f"judgements-{corpus.card.name}.jsonl")
        prefix = f"{corpus.card.name}/" if len(corpora) > 1 else ""
        tasks |= {prefix + name: row for name, row in rows_of_tasks.items()}
        rows += _samples(recipe.evaluation, corpus, asked, predictions)
    write_text(out / SAMPLES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    average = recipe.evaluation.average
    more = {"average": averages(average, tasks)} if average is not None else {}
    write_json(out / SUMMARY, {"tasks": tasks, "inputs": inputs, "grading": _grading(recipe.evaluation), **more})
    _tell(tasks)
    return out


def is_current(summary: Mapping[str, object], recipe: Recipe, exported: Path) -> bool:
    """Whether a summary is of this export, of the recipe's questions, and graded as this version grades."""
    corpora = open_corpora(recipe.data)
    inputs = _inputs(recipe, exported, corpora, _teacher_columns(recipe, corpora))
    return summary["inputs"] == inputs and summary.get("grading") == _grading(recipe.evaluation)


def _inputs(recipe: Recipe, exported: Path, corpora: Sequence[Corpus], teachers: Sequence[Columns]) -> str:
    answers = [column.digest for columns in teachers for column in columns.values()]
    return digest([read_manifest(exported).files, recipe.evaluation.identity(), [c.shards.digest for c in corpora], answers])


def _grading(config: EvaluationConfig) -> str:
    return digest([GRADING_VERSION, config.model_dump(mode="json", include=GRADING)])


def evaluate_run(recipe: Recipe, checkpoint: Path | None = None, regrade: bool = False, partition: tuple[int, int] = (0, 1)) -> Path:
    """Evaluate the run's export (made from its newest checkpoint if need be) into `eval`, and publish the results.

    Another checkpoint or export of the run goes into `eval/<its name>`, other corpora than the run's into `eval/<their names>`; neither is
    published as the run's result. Raises InputError where the run was trained by another recipe (its data and teachers may differ). For
    an export only the questions count: its recipe is not compared. Raises it, too, for a split, task or field that the data does not know,
    before a model is read.
    """
    check_evaluation_names(recipe)
    graded = _evaluate_run(recipe, checkpoint, regrade, partition)
    if (graded / SUMMARY).is_file():  # else other partitions have not asked their share yet
        show_results(recipe.run_dir, graded / SUMMARY)
    return graded


def _evaluate_run(recipe: Recipe, checkpoint: Path | None, regrade: bool, partition: tuple[int, int]) -> Path:
    folder = recipe.run_dir
    if checkpoint is None or not (checkpoint / MANIFEST).is_file():
        same_recipe(folder, recipe, NOT_THE_STUDENTS)
    if checkpoint is None:
        exported = export(folder, folder / EXPORT)
        step = read_json(exported / MANIFEST)["step"]
        if step < recipe.train.steps:
            say(f"eval: `{folder}` is not finished: this grades step {step} of {recipe.train.steps}, not the student that it will end with")
        if other_data(folder, recipe):
            cards = [load_card(Path(corpus.card)).name for corpus in recipe.data.corpora]
            return evaluate(recipe, exported, folder / EVAL / "+".join(cards), regrade, partition)
        graded = evaluate(recipe, exported, folder / EVAL, regrade, partition)
        if (graded / SUMMARY).is_file() and is_current(read_json(graded / SUMMARY), recipe, exported):
            publish_results(recipe.tracking, folder, read_json(graded / SUMMARY)["tasks"], step)
        return graded
    exported = checkpoint if (checkpoint / MANIFEST).is_file() else export(folder, folder / f"{EXPORT}-{checkpoint.name}", checkpoint)
    return evaluate(recipe, exported, folder / EVAL / checkpoint.name, regrade, partition)


def _teacher_answers(columns: Columns, asked: Sequence[Question]) -> dict[str, list[Prediction]]:
    """The teachers' stored answers to these questions; of several teachers, also each one's own."""
    own = {}
    for role, column in columns.items():
        rows = {(example["key"], example["turn"]): row for row, example in enumerate(column.table.select(["key", "turn"]).to_pylist())}
        found = [(q, rows[q.sample.key, q.turn]) for q in asked if (q.sample.key, q.turn) in rows]
        own[role] = [Prediction(q.task, q.split, q.sample.key, q.instruction, q.reference, column.read(row).text) for q, row in found]
    first: dict[tuple[str, str, str], Prediction] = {}
    for p in (p for predictions in own.values() for p in predictions):
        first.setdefault((p.task, p.split, p.key), p)
    out = {TEACHER: list(first.values())} if own else {}
    return out | ({f"{TEACHER}:{role}": predictions for role, predictions in own.items()} if len(own) > 1 else {})


def _teacher_columns(recipe: Recipe, corpora: Sequence[Corpus]) -> list[Columns]:
    """For each corpus, the published columns of the teachers that the recipe trains on, without those that hold the dataset's labels."""
    roles = [role for role in recipe.train.roles if recipe.teachers[role].backend != "label"]
    if not roles:
        return [{} for _ in corpora]
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    names = {role: column_spec(role, recipe.teachers[role], recipe.prompt, prompt).name for role in roles}
    return [{role: c.shards.column(name) for role, name in names.items() if name in c.shards.column_names()} for c in corpora]


def _audio_of(reader: Reader, question: Question) -> np.ndarray:
    samples_T = reader.audio(question.sample.row)
    assert samples_T is not None, "questions are asked only about clips"
    return samples_T


def _summary(
    config: EvaluationConfig, corpus: Corpus, asked: Sequence[Question], predictions: Mapping[str, Sequence[Prediction]]
) -> dict[str, Row]:
    out = {}
    for name in dict.fromkeys(q.task for q in asked):
        of_task = [q for q in asked if q.task == name]
        summary = TaskSummary(config=config, name=name, task=corpus.card.tasks[name], asked=of_task, predictions=predictions)
        out[name] = summary.row()
    return out


def _add_judgements(recipe: Recipe, rows: Mapping[str, Row], predictions: Mapping[str, Sequence[Prediction]], journal: Path) -> None:
    """The judge's score of the student's answers on the main split, for the tasks that the recipe names."""
    config = recipe.evaluation.judge
    chosen = [name for name in rows if config is not None and name in config.tasks]
    if config is None or not chosen:
        return
    judge = Judge(config, load_tokenizer(recipe.student.llm), journal)
    main = next(iter(recipe.evaluation.splits.values()))
    for name in chosen:
        score = judge.score([p for p in predictions["student"] if p.task == name and p.split == main])
        if score is not None:
            rows[name]["judge"] = asdict(score) | judge.facts()


def _tell(tasks: Mapping[str, Row]) -> None:
    """One line a task whose student is not shown to hear, or whose score depends on who parses it."""
    for name, row in tasks.items():
        if row["hears"] is False:
            say(f"eval: task `{name}`: the student is not shown to hear: its score is within its interval of the control's")
        parsers: dict[str, dict[str, float]] = row["parsers"]  # type: ignore[assignment]
        if len(parsers) > 1:
            strict = parsers[STRICT]["value"]
            moved = (f"{parser} {100 * (score['value'] - strict):+.1f}" for parser, score in parsers.items() if parser != STRICT)
            say(f"eval: task `{name}`: strict {100 * strict:.1f} %, by other parsers of the same answers: {', '.join(moved)} points")


def _samples(
    config: EvaluationConfig, corpus: Corpus, asked: Sequence[Question], predictions: Mapping[str, Sequence[Prediction]]
) -> list[dict[str, object]]:
    """A few clips for the report, spread over tasks and splits, with every system's answer."""
    reader = Reader(corpus.shards)
    answers = {system: {(p.task, p.key): p.answer for p in ps} for system, ps in predictions.items()}
    step = max(1, len(asked) // max(1, config.samples))
    rows: list[dict[str, object]] = []
    for question in asked[::step][: config.samples]:
        where = (question.task, question.sample.key)
        answer = answers["student"].get(where, "")
        stored = Prediction(question.task, question.split, question.sample.key, question.instruction, question.reference, answer)
        rows.append(
            {
                "key": question.sample.key,
                "split": question.split,
                "task": question.task,
                "question": question.instruction,
                "teacher": answers.get(TEACHER, {}).get(where),
                "student": answer,
                "reference": question.reference,
                "correct": grade([stored], corpus.card.tasks)[0].right,
                "metadata": dict(question.sample.metadata),
                "audio": base64.b64encode(encode_flac(_audio_of(reader, question))).decode(),
            }
        )
    return rows


def _write_predictions(path: Path, predictions: Mapping[str, Sequence[Prediction]]) -> None:
    lines = [json.dumps({"system": system, **asdict(p)}, ensure_ascii=False) for system, given in predictions.items() for p in given]
    write_text(path, "\n".join(lines) + "\n")


def _stored_predictions(path: Path) -> dict[str, list[Prediction]] | None:
    """The predictions by system; None where the file is gone."""
    if not path.is_file():
        return None
    out: dict[str, list[Prediction]] = {}
    for row in read_json_lines(path):
        out.setdefault(row.pop("system"), []).append(Prediction(**row))
    return out
