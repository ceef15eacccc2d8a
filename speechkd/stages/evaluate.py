"""`speechkd eval`: asks the exported student and the controls about audio, and grades their answers and the teacher's stored ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
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
from speechkd.evaluation.questions import EvaluationConfig, Question
from speechkd.evaluation.runner import Prediction, Score, answer_from_audio, answer_from_metadata, chance, grade, shuffled, summarise
from speechkd.models.encoder import SAMPLE_RATE
from speechkd.models.exported import MANIFEST, load_student, read_manifest
from speechkd.recipe import Recipe
from speechkd.stages.export import export
from speechkd.stages.inputs.columns import column_spec
from speechkd.stages.inputs.corpora import Corpus, evaluation_questions, open_corpora
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.results import publish_results, show_results
from speechkd.stages.run_folder import NOT_THE_STUDENTS, other_data, same_recipe

SUMMARY, SAMPLES, EXPORT, EVAL = "summary.json", "samples.jsonl", "export", "eval"


def evaluate(recipe: Recipe, exported: Path, out: Path, regrade: bool = False) -> Path:
    """Evaluate the export folder `exported` into `out`: predictions per corpus, summary, samples. Does nothing where inputs are unchanged.

    `regrade` grades the stored answers again and runs no model. Raises InputError if they are of another export or answer other questions.
    """
    corpora = open_corpora(recipe.data)
    teacher_columns = _teacher_columns(recipe, corpora)
    inputs = _inputs(recipe, exported, corpora, teacher_columns)
    earlier = read_json(out / SUMMARY).get("inputs") if (out / SUMMARY).is_file() else None
    if regrade and earlier != inputs:
        raise InputError(f"nothing to regrade: `{out}` holds no answers of this export to these questions (run `speechkd eval` first)")
    if earlier == inputs and not regrade:
        say(f"eval: `{out}` is up to date")
        return out
    tasks: dict[str, dict[str, object]] = {}
    rows: list[dict[str, object]] = []
    for corpus, columns in zip(corpora, teacher_columns, strict=True):
        stored = out / f"predictions-{corpus.card.name}.jsonl"
        asked = evaluation_questions(recipe.evaluation, corpus)
        if not asked:
            say(f"eval: corpus `{corpus.card.name}` has no tasks for the splits {sorted(recipe.evaluation.splits.values())}")
            continue
        predictions = _stored_predictions(stored) if regrade else _predict(recipe.evaluation, corpus, columns, asked, exported)
        if not regrade:
            lines = [
                json.dumps({"system": system, **asdict(p)}, ensure_ascii=False) for system, given in predictions.items() for p in given
            ]
            write_text(stored, "\n".join(lines) + "\n")
        tasks |= _summary(recipe.evaluation, corpus, asked, predictions, prefix=f"{corpus.card.name}/" if len(corpora) > 1 else "")
        rows += _samples(recipe.evaluation, corpus, asked, predictions)
    write_text(out / SAMPLES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(out / SUMMARY, {"tasks": tasks, "inputs": inputs})
    return out


def evaluation_inputs(recipe: Recipe, exported: Path) -> str:
    """Digest of everything that an evaluation of an export depends on: a summary with these `inputs` is up to date."""
    corpora = open_corpora(recipe.data)
    return _inputs(recipe, exported, corpora, _teacher_columns(recipe, corpora))


def _inputs(recipe: Recipe, exported: Path, corpora: Sequence[Corpus], teacher_columns: Sequence[Sequence[Column]]) -> str:
    answers = [column.digest for columns in teacher_columns for column in columns]
    return digest([read_manifest(exported).files, recipe.evaluation.identity(), [c.shards.digest for c in corpora], answers])


def evaluate_run(recipe: Recipe, checkpoint: Path | None = None, regrade: bool = False) -> Path:
    """Evaluate the run's export (made from its newest checkpoint if need be) into `eval`, and publish the results.

    Another checkpoint or export of the run goes into `eval/<its name>`, other corpora than the run's into `eval/<their names>`; neither is
    published as the run's result. Raises InputError where the run was trained by another recipe (its data and teachers may differ). For
    an export only the questions count: its recipe is not compared.
    """
    graded = _evaluate_run(recipe, checkpoint, regrade)
    show_results(recipe.run_dir, graded / SUMMARY)
    return graded


def _evaluate_run(recipe: Recipe, checkpoint: Path | None, regrade: bool) -> Path:
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
            return evaluate(recipe, exported, folder / EVAL / "+".join(cards), regrade)
        graded = evaluate(recipe, exported, folder / EVAL, regrade)
        publish_results(recipe.tracking, folder, read_json(graded / SUMMARY)["tasks"], step)
        return graded
    exported = checkpoint if (checkpoint / MANIFEST).is_file() else export(folder, folder / f"{EXPORT}-{checkpoint.name}", checkpoint)
    return evaluate(recipe, exported, folder / EVAL / checkpoint.name, regrade)


def _predict(
    config: EvaluationConfig, corpus: Corpus, columns: Sequence[Column], asked: Sequence[Question], exported: Path
) -> dict[str, list[Prediction]]:
    """System -> its answers: student and teacher on all splits; reads, shuffled and untrained on the main split.

    Where a corpus has several teacher columns, the last one counts.
    """
    reader = Reader(corpus.shards)
    other = shuffled(asked)
    main = next(iter(config.splits.values()))
    on_main = [q for q in asked if q.split == main]
    limits = (config.max_new_tokens, config.batch_size)

    def right_audio(question: Question) -> np.ndarray:
        return _audio_of(reader, question)

    def wrong_audio(question: Question) -> np.ndarray:
        return _audio_of(reader, other[question.task, question.sample.key])

    student = load_student(exported)
    for question in asked:
        student.check_length(
            question.instruction, round(question.sample.seconds * SAMPLE_RATE), f"`{question.sample.key}`, task {question.task}"
        )
    predictions = {"student": answer_from_audio(student, asked, right_audio, *limits, label="eval student")}
    if config.reads is not None:
        predictions["reads"] = answer_from_metadata(student, on_main, config.reads, *limits, label="eval reads")
    if config.controls:
        predictions["shuffled"] = answer_from_audio(student, on_main, wrong_audio, *limits, label="eval shuffled")
        del student  # one language model in memory at a time
        untrained = load_student(exported, weights=False)
        predictions["untrained"] = answer_from_audio(untrained, on_main, right_audio, *limits, label="eval untrained")
    for column in columns:
        examples = column.table.select(["key", "turn"]).to_pylist()
        answers = {(example["key"], example["turn"]): row for row, example in enumerate(examples)}
        found = [(q, answers[q.sample.key, q.turn]) for q in asked if (q.sample.key, q.turn) in answers]
        predictions["teacher"] = [
            Prediction(q.task, q.split, q.sample.key, q.instruction, q.reference, column.read(row).text) for q, row in found
        ]
    return predictions


def _teacher_columns(recipe: Recipe, corpora: Sequence[Corpus]) -> list[list[Column]]:
    """For each corpus, the published columns of the teachers that the recipe trains on, without those that hold the dataset's labels."""
    roles = [role for role in recipe.train.roles if recipe.teachers[role].backend != "label"]
    if not roles:
        return [[] for _ in corpora]
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    names = [column_spec(role, recipe.teachers[role], recipe.prompt, prompt).name for role in roles]
    return [[corpus.shards.column(name) for name in names if name in corpus.shards.column_names()] for corpus in corpora]


def _audio_of(reader: Reader, question: Question) -> np.ndarray:
    samples_T = reader.audio(question.sample.row)
    assert samples_T is not None, "questions are asked only about clips"
    return samples_T


def _summary(
    config: EvaluationConfig, corpus: Corpus, asked: Sequence[Question], predictions: dict[str, list[Prediction]], prefix: str
) -> dict[str, dict[str, object]]:
    """Per task: each system's score on the main split, the student's on the other splits, chance, counts."""
    (main_label, main), *others = config.splits.items()
    out: dict[str, dict[str, object]] = {}
    for task in dict.fromkeys(q.task for q in asked):

        def score(system: str, split: str, task: str = task) -> Score | None:
            chosen = [p for p in predictions.get(system, []) if p.task == task and p.split == split]
            return summarise(grade(chosen, corpus.card.tasks))

        student = score("student", main)
        row: dict[str, object] = {
            "student": student.value if student else None,
            "n": student.n if student else 0,
            "unparsable": student.unparsable if student else 0,
        }
        for label, split in others:
            found = score("student", split)
            row |= {
                label: found.value if found else None,
                f"{label}_n": found.n if found else 0,
                f"{label}_unparsable": found.unparsable if found else 0,
            }
        for system in ("teacher", "shuffled", "untrained", *(["reads"] if "reads" in predictions else [])):
            found = score(system, main)
            row |= {system: found.value if found else None, f"{system}_unparsable": found.unparsable if found else None}
        row["chance"] = chance([q for q in asked if q.task == task and q.split == main], corpus.card.tasks[task])
        row["splits"] = {main_label: main, **dict(others)}
        out[prefix + task] = row
    return out


def _samples(
    config: EvaluationConfig, corpus: Corpus, asked: Sequence[Question], predictions: dict[str, list[Prediction]]
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
        result = grade([stored], corpus.card.tasks)[0]
        rows.append(
            {
                "key": question.sample.key,
                "split": question.split,
                "task": question.task,
                "question": question.instruction,
                "teacher": answers.get("teacher", {}).get(where),
                "student": answer,
                "reference": question.reference,
                "correct": result.hits == result.total,
                "metadata": dict(question.sample.metadata),
                "audio": base64.b64encode(encode_flac(_audio_of(reader, question))).decode(),
            }
        )
    return rows


def _stored_predictions(path: Path) -> dict[str, list[Prediction]]:
    if not path.is_file():
        raise InputError(f"nothing to regrade: no `{path}` (run `speechkd eval` without --regrade first)")
    out: dict[str, list[Prediction]] = {}
    for row in read_json_lines(path):
        out.setdefault(row.pop("system"), []).append(Prediction(**row))
    return out
