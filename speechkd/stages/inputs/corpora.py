"""The corpora of a recipe: opened as shards, checked, and the questions that are asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from speechkd.core.errors import InputError, unknown_name
from speechkd.data.cards import Card, load_card
from speechkd.data.shards.index import ShardSet, open_shards
from speechkd.data.storage.store import Location, parse_location
from speechkd.evaluation.task import Question, questions
from speechkd.models.exported import load_features
from speechkd.recipe import CorpusConfig, Recipe


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus of a recipe, sharded."""

    config: CorpusConfig
    card: Card
    shards: ShardSet


def version_folder(recipe: Recipe, card: Card) -> Location:
    """Where a corpus's shards lie: ROOT/<dataset>/<version>, in a folder or behind a URL."""
    return parse_location(recipe.data.root) / card.name / card.version


def open_corpora(recipe: Recipe) -> list[Corpus]:
    """The recipe's shards.

    Raises InputError where a corpus is not sharded yet, or was sharded from another card.
    """
    out = []
    for config in recipe.data.corpora:
        card = load_card(Path(config.card))
        folder = version_folder(recipe, card)
        if not (folder / "manifest.json").is_file():
            todo = f"speechkd shard {config.card} --out {recipe.data.root}"
            raise InputError(f"corpus `{card.name}` has no shards at `{folder}`: run `{todo}`")
        shards = open_shards(folder)
        if shards.card.digest != card.digest:
            raise InputError(f"`{folder}` was made from another card than `{config.card}`: raise the card's version, or use the old card")
        out.append(Corpus(config, card, shards))
    return out


def check_clips(recipe: Recipe, corpora: Sequence[Corpus]) -> None:
    """Fail-fast checks on splits, tasks and clip length.

    Raises InputError for a split to train on that its corpus lacks, or one to evaluate that no corpus has, for a task that one of them does
    not have, and for clips, to train on or to ask about, that the encoder cannot hear whole. A corpus that no role reads trains nothing.
    """
    known = {split: None for corpus in corpora for split in corpus.shards.splits()}
    for label, split in recipe.evaluation.splits.items():
        if split not in known:
            raise InputError(unknown_name("split", split, known, f"evaluation.splits.{label}"))
    window = load_features(recipe.student.encoder).window_seconds
    for corpus in corpora:
        train = train_splits(recipe, corpus)
        base = corpus.shards.read_index(["seconds", "split"])
        train_N = pc.is_in(base["split"].cast("string"), value_set=pa.array(train, pa.string())).to_numpy()
        longest = float(base["seconds"].to_numpy()[train_N].max(initial=0.0))
        longest = max([longest, *(question.sample.seconds for question in evaluation_questions(recipe, corpus))])
        if longest > window:
            raise InputError(
                f"corpus `{corpus.card.name}` has clips of {longest:.1f} s; the encoder `{recipe.student.encoder}` hears at most "
                f"{window:g} s: set audio.max_seconds in its card (and raise its version)"
            )


def train_splits(recipe: Recipe, corpus: Corpus) -> list[str]:
    """Splits of a corpus to train on: none where no role reads it. Raises InputError for one that is not there."""
    splits = corpus.config.train_splits if any(corpus.config.weight(role) for role in recipe.train.roles) else []
    corpus.shards.check_splits(splits)
    return splits


def evaluation_questions(recipe: Recipe, corpus: Corpus) -> list[Question]:
    """What the recipe asks about the splits that a corpus has. Raises InputError for a task that the corpus does not have."""
    tasks = corpus.card.tasks
    names = recipe.evaluation.tasks or list(tasks)
    for name in names:
        if name not in tasks:
            raise InputError(unknown_name("task", name, tasks, f"evaluation.tasks, corpus {corpus.card.name}"))
    return [
        question
        for split in recipe.evaluation.splits.values()
        if split in corpus.shards.splits()
        for name in names
        for question in questions(name, tasks[name], split, corpus.shards.samples(split), recipe.evaluation.limit)
    ]
