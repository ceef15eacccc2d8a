"""Checks every name by which a recipe refers to its data: metadata fields, columns, languages, tasks and splits.

A field that no clip has is skipped in a prompt without a word, so a misspelt one would teach answers to other questions. Each name must be
known to at least one corpus that reads it. The corpora are read until all names are found, which most are in the first shard.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.types import Metadata
from speechkd.evaluation.questions import EvaluationConfig
from speechkd.models.prompt import Reading
from speechkd.recipe import Recipe
from speechkd.stages.inputs.corpora import Corpus, check_evaluation, check_split, open_corpora, train_splits
from speechkd.stages.inputs.rows import compared_with
from speechkd.teachers.gates import known_languages
from speechkd.teachers.live_config import SelfConfig, TextLlmConfig, column_of
from speechkd.teachers.prompts import PromptConfig

LANGUAGE = "language"
"""The metadata field that a language gate compares with"""


@dataclass(frozen=True, slots=True)
class Reference:
    """A name in a recipe that the metadata of some clip must have."""

    name: str
    where: str
    """the recipe's key"""
    is_language: bool = False
    """a value of the field `language`; otherwise a field"""

    @property
    def kind(self) -> str:
        """What it names, for messages."""
        return "language" if self.is_language else "field"

    def among(self, fields: Collection[str], languages: Collection[str]) -> bool:
        """Whether it is known."""
        return self.name in (languages if self.is_language else fields)


def check_names(recipe: Recipe, corpora: Sequence[Corpus], roles: Sequence[str] | None = None) -> None:
    """Refuse a name that the data does not know, of what teachers are asked: splits, tasks, fields. Raises InputError with the nearest one.

    `roles`: the teacher roles that are to be looked at; None: those that the regime trains on.
    """
    chosen = [role for role in roles or recipe.train.roles if any(corpus.config.weight(role) for corpus in corpora)]
    for corpus in corpora:
        train_splits(corpus, recipe.train.roles)
        _check_tasks(recipe, corpus, chosen)
    for language in recipe.gates.languages:
        if language not in known_languages():
            raise InputError(unknown_name("language", language, known_languages(), "gates.languages"))
    _check_metadata([*_of_prompt(recipe.prompt), *_of_teachers(recipe, chosen), *_of_gates(recipe)], corpora)


def check_training_names(recipe: Recipe, corpora: Sequence[Corpus]) -> None:
    """Refuse a name that the data does not know, of all that training and evaluation read. Raises InputError with the nearest one."""
    check_names(recipe, corpora)
    _check_evaluation(recipe.evaluation, corpora)
    if recipe.train.held_out is not None:
        check_split(recipe.train.held_out.split, corpora, "train.held_out.split")
    _check_metadata(list(_of_losses(recipe)), corpora)


def check_evaluation_names(recipe: Recipe) -> None:
    """Refuse a split, task or field of the evaluation that the data does not know, before a run is looked for or a model is read.

    Raises InputError with the nearest name. Missing shards are left to the code that reads them: what is wrong with the run comes first.
    """
    try:
        corpora = open_corpora(recipe.data)
    except InputError:
        return
    _check_evaluation(recipe.evaluation, corpora)


def _check_evaluation(evaluation: EvaluationConfig, corpora: Sequence[Corpus]) -> None:
    check_evaluation(evaluation, corpora)
    _check_metadata(list(_of_evaluation(evaluation)), corpora)


def check_columns(recipe: Recipe, corpora: Sequence[Corpus]) -> None:
    """Refuse a column that the prompt or a teacher reads and a corpus does not have. Raises InputError with the nearest one.

    Not before training: an earlier teacher of the same recipe may still make it.
    """
    named = {f"teachers.{role}.responses": recipe.teachers[role].answers_from() for role in recipe.train.roles}
    named["prompt.span.column"] = recipe.prompt.span.column
    used = {name for stream in recipe.train.streams for name in compared_with(recipe.losses, stream)}
    named |= {f"live.{name}.reads.column": column_of(recipe.live[name]) for name in sorted(used)}
    for corpus in corpora:
        names = corpus.shards.column_names()
        for where, name in named.items():
            if name and name not in names:
                raise InputError(unknown_name("column", name, names, f"{where}, corpus {corpus.card.name}"))


def _check_tasks(recipe: Recipe, corpus: Corpus, roles: Iterable[str]) -> None:
    for role in roles:
        if not corpus.config.weight(role):
            continue
        for name in recipe.teachers[role].tasks or ():
            if name not in corpus.card.tasks:
                raise InputError(unknown_name("task", name, corpus.card.tasks, f"teachers.{role}.tasks, corpus {corpus.card.name}"))


def _of_prompt(prompt: PromptConfig) -> Iterator[Reference]:
    if prompt.span.field:
        yield Reference(prompt.span.field, "prompt.span.field")
    if prompt.channels is not None:
        yield Reference(prompt.channels.field, "prompt.channels.field")
        if prompt.channels.label:
            yield Reference(prompt.channels.label, "prompt.channels.label")


def _of_teachers(recipe: Recipe, roles: Iterable[str]) -> Iterator[Reference]:
    if recipe.prompt.span.reads != "metadata":  # the span's text stands in the place of the fields
        return
    for role in roles:
        yield from (Reference(name, f"teachers.{role}.fields") for name in recipe.teachers[role].metadata_fields())


def _of_gates(recipe: Recipe) -> Iterator[Reference]:
    if recipe.gates.asr is not None:
        yield Reference(recipe.gates.asr.hypothesis, "gates.asr.hypothesis")
        yield Reference(recipe.gates.asr.reference, "gates.asr.reference")


def _of_losses(recipe: Recipe) -> Iterator[Reference]:
    """What live teachers, streams that are read, and losses on transcripts or languages take from the metadata."""
    for name in {name: None for stream in recipe.train.streams for name in compared_with(recipe.losses, stream)}:
        live = recipe.live[name]
        if isinstance(live, (SelfConfig, TextLlmConfig)):
            yield from _of_reading(live.reads.reading, f"live.{name}.reads.fields")
    if any(stream.endswith("/text") for stream in recipe.train.streams):
        yield from _of_reading(recipe.prompt.text, "prompt.text.fields")
    if any("words" in config.needs().student for config in recipe.losses.values()):
        yield Reference(recipe.prompt.transcript, "prompt.transcript")
    languages = recipe.student.projector.gate_languages()
    yield from (Reference(language, "student.projector.languages", is_language=True) for language in languages)


def _of_evaluation(evaluation: EvaluationConfig) -> Iterator[Reference]:
    if evaluation.reads is not None:
        yield from _of_reading(evaluation.reads, "evaluation.reads.fields")
    usual = EvaluationConfig.model_fields["slices"].get_default()
    yield from (Reference(name, "evaluation.slices") for name in evaluation.slices if name not in usual)


def _of_reading(reading: Reading, where: str) -> Iterator[Reference]:
    if reading.form != "nothing":
        yield from (Reference(name, where) for name in reading.fields)


def _check_metadata(references: Sequence[Reference], corpora: Sequence[Corpus]) -> None:
    """Read metadata until every reference is found. Raises InputError for the first that none has."""
    fields: set[str] = set()
    languages: set[str] = set()
    missing = list(references)
    for metadata in _metadata(corpora):
        if not missing:
            return
        if not fields.issuperset(metadata) or str(metadata.get(LANGUAGE, "")) not in languages:
            fields.update(metadata)
            languages.add(str(metadata.get(LANGUAGE, "")))
            missing = [reference for reference in missing if not reference.among(fields, languages)]
    if missing:
        first = missing[0]
        corpus = ", ".join(corpus.card.name for corpus in corpora)
        allowed = languages - {""} if first.is_language else fields
        raise InputError(unknown_name(first.kind, first.name, allowed, f"{first.where}; no clip of {corpus} has it"))


def _metadata(corpora: Sequence[Corpus]) -> Iterator[Metadata]:
    for corpus in corpora:
        for shard in range(corpus.shards.shards):
            yield from (sample.metadata for sample in corpus.shards.samples(shard=shard))
