"""The second stage: a teacher answers every turn of every clip, shard by shard, into a column beside the audio."""

from __future__ import annotations

from speechkd.core.errors import InputError
from speechkd.core.log import progress, say
from speechkd.data.columns import Column, ColumnWriter, Turn
from speechkd.models.prompt import Prompt
from speechkd.recipe import Recipe
from speechkd.stages.inputs import Corpus, column_spec, open_corpora, open_prompt
from speechkd.teachers import TEACHERS
from speechkd.teachers.base import Teacher
from speechkd.teachers.prompts import requests


def teach(recipe: Recipe, partition: tuple[int, int] = (0, 1), roles: list[str] | None = None) -> list[Column | None]:
    """Make the columns that the recipe's regime trains on (or those of `roles`); shards that have theirs are left alone.

    Returns each corpus's and role's column, None where other partitions are still at work. The teacher loads only if something is missing.
    """
    prompt = open_prompt(recipe)
    corpora = open_corpora(recipe)
    return [_column(recipe, role, corpus, prompt, partition) for role in roles or recipe.train.roles for corpus in corpora]


def _column(recipe: Recipe, role: str, corpus: Corpus, prompt: Prompt, partition: tuple[int, int]) -> Column | None:
    spec = column_spec(recipe, role, prompt)
    if spec.name in corpus.shards.column_names():
        return corpus.shards.column(spec.name)
    part, parts = partition
    if not 0 <= part < parts:
        raise InputError(f"partition {part}/{parts}: must be 0/{parts} to {parts - 1}/{parts}")
    writer = ColumnWriter(corpus.shards, spec)
    missing = [shard for shard in writer.missing() if shard % parts == part]
    if missing:
        config = recipe.teachers[role]
        teacher = TEACHERS.get(config.backend)(config, prompt)  # type: ignore[attr-defined]
        done = corpus.shards.shards - len(missing)
        for shard in progress(missing, f"teach {role}", total=corpus.shards.shards, start=done):
            writer.write_shard(shard, _answers(recipe, corpus, teacher, shard))
    left = writer.missing()
    if left:
        say(f"teach: column {spec.name} still lacks {len(left)} shards; the partition that writes the last one publishes")
        return None
    return writer.publish()


def _answers(recipe: Recipe, corpus: Corpus, teacher: Teacher, shard: int) -> dict[str, list[Turn]]:
    """All turns of one shard, answered. The requests of a shard, and so the teacher's batches, are the same at every attempt."""
    asked = [
        request
        for sample in corpus.shards.samples(shard=shard)
        for request in requests(recipe.prompt, corpus.card.tasks, sample.key, sample.metadata)
        if teacher.accepts(request)
    ]
    turns: dict[str, list[Turn]] = {}
    for request, answer in zip(asked, teacher.answer(asked), strict=True):
        turn = Turn(request.turn, request.question, answer.text, answer.tokens, answer.prompt_tokens, answer.stop, answer.reason)
        turns.setdefault(request.key, []).append(turn)
    return turns
