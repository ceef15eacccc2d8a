"""The fifth stage: the exported student answers from audio alone, beside its controls, graded strictly."""

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
from speechkd.evaluation.runner import Prediction, Score, answer_from_audio, answer_from_metadata, chance, grade, shuffled, summarise
from speechkd.evaluation.task import Question
from speechkd.models.exported import MANIFEST, load_student, read_manifest
from speechkd.recipe import Recipe
from speechkd.stages.export import export
from speechkd.stages.inputs.columns import column_spec
from speechkd.stages.inputs.corpora import Corpus, evaluation_questions, open_corpora
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.results import publish_results
from speechkd.stages.run_folder import NOT_THE_STUDENTS, other_data, same_recipe

SUMMARY, SAMPLES, EXPORT, EVAL = "summary.json", "samples.jsonl", "export", "eval"


def evaluate(recipe: Recipe, exported: Path, out: Path, regrade: bool = False) -> Path:
    """Evaluate the export folder `exported` into `out`: predictions per corpus, summary, samples. Unchanged inputs: nothing to do.

    `regrade` grades the stored answers again, without asking; they must be this export's to these questions.
    """
    corpora = open_corpora(recipe)
    manifest = read_manifest(exported)
    settings = recipe.evaluation.identity()
    answered = _answered(recipe, corpora)
    answers = [column.digest for columns in answered for column in columns]
    of = digest([manifest.files, settings, [c.shards.digest for c in corpora], answers])
    told = read_json(out / SUMMARY).get("inputs") if (out / SUMMARY).is_file() else None
    if regrade and told != of:
        raise InputError(f"nothing to regrade: `{out}` holds no answers of this export to these questions (run `speechkd eval` first)")
    if told == of and not regrade:
        say(f"eval: `{out}` is of this export already")
        return out
    tasks: dict[str, dict[str, object]] = {}
    rows: list[dict[str, object]] = []
    for corpus, columns in zip(corpora, answered, strict=True):
        stored = out / f"predictions-{corpus.card.name}.jsonl"
        asked = evaluation_questions(recipe, corpus)
        if not asked:
            say(f"eval: corpus `{corpus.card.name}` has no tasks for the splits {sorted(recipe.evaluation.splits.values())}")
            continue
        predictions = _read(stored) if regrade else _predict(recipe, corpus, columns, asked, exported)
        if not regrade:
            lines = [
                json.dumps({"system": system, **asdict(p)}, ensure_ascii=False) for system, given in predictions.items() for p in given
            ]
            write_text(stored, "\n".join(lines) + "\n")
        tasks |= _summary(recipe, corpus, asked, predictions, prefix=f"{corpus.card.name}/" if len(corpora) > 1 else "")
        rows += _samples(recipe, corpus, asked, predictions)
    write_text(out / SAMPLES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(out / SUMMARY, {"tasks": tasks, "inputs": of})
    return out


def evaluate_run(recipe: Recipe, checkpoint: Path | None = None, regrade: bool = False) -> Path:
    """Evaluate the run's export (made from its newest checkpoint if need be) into `eval`.

    Another export or checkpoint folder of the run goes into `eval/<its name>`, other corpora than the run's into `eval/<their names>`, so
    that neither passes for the run's own result. Raises InputError where the run was trained by another recipe; its data may be another,
    and of an export only the questions count.
    """
    folder = recipe.run_dir
    if checkpoint is None or not (checkpoint / MANIFEST).is_file():
        same_recipe(folder, recipe, NOT_THE_STUDENTS)
    if checkpoint is None:
        exported = export(folder, folder / EXPORT)
        if other_data(folder, recipe):
            cards = [load_card(Path(corpus.card)).name for corpus in recipe.data.corpora]
            return evaluate(recipe, exported, folder / EVAL / "+".join(cards), regrade)
        graded = evaluate(recipe, exported, folder / EVAL, regrade)
        publish_results(recipe, folder, read_json(graded / SUMMARY)["tasks"], read_json(exported / MANIFEST)["step"])
        return graded
    exported = checkpoint if (checkpoint / MANIFEST).is_file() else export(folder, folder / f"{EXPORT}-{checkpoint.name}", checkpoint)
    return evaluate(recipe, exported, folder / EVAL / checkpoint.name, regrade)


def _predict(
    recipe: Recipe, corpus: Corpus, columns: Sequence[Column], asked: Sequence[Question], exported: Path
) -> dict[str, list[Prediction]]:
    """Every system's answers: student and teacher column on all splits; reading, shuffled and untrained on the main one."""
    reader = Reader(corpus.shards)
    other = shuffled(asked)
    main = next(iter(recipe.evaluation.splits.values()))
    first = [q for q in asked if q.split == main]
    limits = (recipe.evaluation.max_new_tokens, recipe.evaluation.batch_size)

    def own(question: Question) -> np.ndarray:
        return _hear(reader, question)

    def swapped(question: Question) -> np.ndarray:
        return _hear(reader, other[question.task, question.sample.key])

    student = load_student(exported)
    predictions = {"student": answer_from_audio(student, asked, own, *limits, label="eval student")}
    if recipe.evaluation.reads is not None:
        predictions["reads"] = answer_from_metadata(student, first, recipe.evaluation.reads, *limits, label="eval reads")
    if recipe.evaluation.controls:
        predictions["shuffled"] = answer_from_audio(student, first, swapped, *limits, label="eval shuffled")
        del student  # one language model in memory at a time
        predictions["untrained"] = answer_from_audio(load_student(exported, weights=False), first, own, *limits, label="eval untrained")
    for column in columns:
        examples = column.examples().select(["key", "turn"]).to_pylist()
        answers = {(example["key"], example["turn"]): row for row, example in enumerate(examples)}
        found = [(q, answers[q.sample.key, q.turn]) for q in asked if (q.sample.key, q.turn) in answers]
        predictions["teacher"] = [
            Prediction(q.task, q.split, q.sample.key, q.instruction, q.reference, column.read(row).text) for q, row in found
        ]
    return predictions


def _answered(recipe: Recipe, corpora: Sequence[Corpus]) -> list[list[Column]]:
    """By corpus, the columns of teachers' own answers that it has, of the roles that the recipe trains on."""
    roles = [role for role in recipe.train.roles if recipe.teachers[role].backend != "label"]  # type: ignore[attr-defined]
    if not roles:
        return [[] for _ in corpora]
    prompt = open_prompt(recipe)
    names = [column_spec(recipe, role, prompt).name for role in roles]
    return [[corpus.shards.column(name) for name in names if name in corpus.shards.column_names()] for corpus in corpora]


def _hear(reader: Reader, question: Question) -> np.ndarray:
    samples_T = reader.audio(question.sample.row)
    assert samples_T is not None, "questions are asked only about clips"
    return samples_T


def _summary(
    recipe: Recipe, corpus: Corpus, asked: Sequence[Question], predictions: dict[str, list[Prediction]], prefix: str
) -> dict[str, dict[str, object]]:
    """Per task: each system's score on the main split, the student's on the other splits, chance, counts."""
    (main_label, main), *others = recipe.evaluation.splits.items()
    out: dict[str, dict[str, object]] = {}
    for task in dict.fromkeys(q.task for q in asked):

        def score(system: str, split: str, task: str = task) -> Score | None:
            chosen = [p for p in predictions.get(system, []) if p.task == task and p.split == split]
            return summarise(grade(chosen, corpus.card.tasks))

        own = score("student", main)
        row: dict[str, object] = {
            "student": own.value if own else None,
            "n": own.n if own else 0,
            "unparsable": own.unparsable if own else 0,
        }
        for label, split in others:
            far = score("student", split)
            row |= {
                label: far.value if far else None,
                f"{label}_n": far.n if far else 0,
                f"{label}_unparsable": far.unparsable if far else 0,
            }
        for system in ("teacher", "shuffled", "untrained", *(["reads"] if "reads" in predictions else [])):
            there = score(system, main)
            row |= {system: there.value if there else None, f"{system}_unparsable": there.unparsable if there else None}
        row["chance"] = chance([q for q in asked if q.task == task and q.split == main], corpus.card.tasks[task])
        row["splits"] = {main_label: main, **dict(others)}
        out[prefix + task] = row
    return out


def _samples(
    recipe: Recipe, corpus: Corpus, asked: Sequence[Question], predictions: dict[str, list[Prediction]]
) -> list[dict[str, object]]:
    """A few clips for the report, spread over tasks and splits, with every system's answer."""
    reader = Reader(corpus.shards)
    answers = {system: {(p.task, p.key): p.answer for p in ps} for system, ps in predictions.items()}
    step = max(1, len(asked) // max(1, recipe.evaluation.samples))
    rows: list[dict[str, object]] = []
    for question in asked[::step][: recipe.evaluation.samples]:
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
                "audio": base64.b64encode(encode_flac(_hear(reader, question))).decode(),
            }
        )
    return rows


def _read(path: Path) -> dict[str, list[Prediction]]:
    if not path.is_file():
        raise InputError(f"nothing to regrade: no `{path}` (run `speechkd eval` without --regrade first)")
    out: dict[str, list[Prediction]] = {}
    for row in read_json_lines(path):
        out.setdefault(row.pop("system"), []).append(Prediction(**row))
    return out
