"""The corpora of a recipe: opens their shards, checks them, and lists the questions that evaluation asks about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.files import where_looked
from speechkd.data.cards import Card, load_card
from speechkd.data.shards.index import ShardSet, open_shards
from speechkd.data.storage.store import Location, parse_location
from speechkd.evaluation.questions import EvaluationConfig, Question, questions
from speechkd.models.exported import load_features
from speechkd.recipe import CorpusConfig, DataConfig


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus of a recipe: its entry there, its card and its published shards."""

    config: CorpusConfig
    card: Card
    shards: ShardSet


def version_folder(root: str, card: Card) -> Location:
    """Where a corpus's shards lie: `root`/<dataset>/<version>, in a folder or behind a URL."""
    return parse_location(root) / card.name / card.version


def open_corpora(data: DataConfig) -> list[Corpus]:
    """Open the shards of every corpus. Raises InputError where one is not sharded yet, or was sharded from another card."""
    out = []
    for config in data.corpora:
        card = load_card(Path(config.card))
        folder = version_folder(data.root, card)
        if not (folder / "manifest.json").is_file():
            command = f"speechkd shard {config.card} --out {data.root}"
            raise InputError(f"corpus `{card.name}` has no shards at `{folder}`{where_looked(folder)}: run `{command}`")
        shards = open_shards(folder)
        if shards.card.digest != card.digest:
            raise InputError(
                f"`{folder}` was made from a card that differs from `{config.card}`: give the card a new `version`, or use the old card"
            )
        out.append(Corpus(config, card, shards))
    return out


def check_clips(corpora: Sequence[Corpus], encoder: str, roles: Sequence[str], evaluation: EvaluationConfig) -> None:
    """Check splits, tasks and clip lengths before training. `encoder`: the student's; `roles`: the teacher roles that it trains on.

    Raises InputError for a training split that its corpus lacks, an evaluation split that no corpus has, a task that a corpus lacks, and
    for clips, trained on or asked about, that are longer than the encoder's window.
    """
    check_evaluation(evaluation, corpora)
    window = load_features(encoder).window_seconds
    for corpus in corpora:
        train = train_splits(corpus, roles)
        index = corpus.shards.read_index(["seconds", "split"])
        train_N = pc.is_in(index["split"].cast("string"), value_set=pa.array(train, pa.string())).to_numpy()
        longest = float(index["seconds"].to_numpy()[train_N].max(initial=0.0))
        longest = max([longest, *(question.sample.seconds for question in evaluation_questions(evaluation, corpus))])
        if longest > window:
            raise InputError(
                f"corpus `{corpus.card.name}` has clips of {longest:.1f} s; the encoder `{encoder}` hears at most "
                f"{window:g} s: set audio.max_seconds in its card (and give it a new `version`)"
            )


def check_evaluation(evaluation: EvaluationConfig, corpora: Sequence[Corpus]) -> None:
    """Raises InputError for an evaluation split that no corpus has, and for a task that a corpus, or all of them, lack."""
    for label, split in evaluation.splits.items():
        check_split(split, corpora, f"evaluation.splits.{label}")
    for corpus in corpora:
        _check_tasks(evaluation, corpus)
    tasks = {name: None for corpus in corpora for name in corpus.card.tasks}
    graded = tasks if len(corpora) == 1 else {f"{corpus.card.name}/{name}": None for corpus in corpora for name in corpus.card.tasks}
    for name in evaluation.judge.tasks if evaluation.judge is not None else ():
        if name not in tasks:
            raise InputError(unknown_name("task", name, tasks, "evaluation.judge.tasks"))
    for category, names in evaluation.average.categories.items() if evaluation.average is not None else ():
        for name in names:
            if name not in graded:
                raise InputError(unknown_name("task", name, graded, f"evaluation.average.categories.{category}"))


def check_split(split: str, corpora: Sequence[Corpus], where: str) -> None:
    """Raises InputError for a split that no corpus has, with the nearest one. `where`: the recipe's key."""
    known = {name: None for corpus in corpora for name in corpus.shards.splits()}
    if split not in known:
        raise InputError(unknown_name("split", split, known, where))


def _check_tasks(evaluation: EvaluationConfig, corpus: Corpus) -> None:
    for name in evaluation.tasks or ():
        if name not in corpus.card.tasks:
            raise InputError(unknown_name("task", name, corpus.card.tasks, f"evaluation.tasks, corpus {corpus.card.name}"))


def train_splits(corpus: Corpus, roles: Sequence[str]) -> list[str]:
    """The splits of a corpus to train on: none where it has weight 0 for every role. Raises InputError for a split that is not there."""
    splits = corpus.config.train_splits if any(corpus.config.weight(role) for role in roles) else []
    corpus.shards.check_splits(splits)
    return splits


def evaluation_questions(evaluation: EvaluationConfig, corpus: Corpus) -> list[Question]:
    """What evaluation asks about those of its splits that a corpus has. Raises InputError for a task that the corpus lacks."""
    tasks = corpus.card.tasks
    names = evaluation.tasks or list(tasks)
    _check_tasks(evaluation, corpus)
    return [
        question
        for split in evaluation.splits.values()
        if split in corpus.shards.splits()
        for name in names
        for question in questions(name, tasks[name], split, corpus.shards.samples(split), evaluation.limit)
    ]
