"""What several stages need of a recipe: its corpora as shards, its prompt, and the names of its teacher columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.files import digest
from speechkd.data.cards import Card, load_card
from speechkd.data.columns.spec import ColumnSpec
from speechkd.data.shards.index import ShardSet, open_shards
from speechkd.data.storage.store import Place, place
from speechkd.evaluation.task import Question, questions
from speechkd.models.exported import load_features, load_tokenizer
from speechkd.models.model_folder import read_config, resolve
from speechkd.models.prompt import Prompt, tokenizer_digest
from speechkd.recipe import CorpusConfig, Recipe


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus of a recipe, sharded."""

    config: CorpusConfig
    card: Card
    shards: ShardSet


def version_folder(recipe: Recipe, card: Card) -> Place:
    """Where a corpus's shards lie: ROOT/<dataset>/<version>, in a folder or behind a URL."""
    return place(recipe.data.root) / card.name / card.version


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
    """What would otherwise be found out late.

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
        base = corpus.shards.columns(["seconds", "split"])
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


def open_prompt(recipe: Recipe) -> Prompt:
    """The recipe's template with the student's tokenizer (teacher and student share it)."""
    path = Path(recipe.prompt.template)
    if not path.is_file():
        raise InputError(f"no such file `{path}` (prompt.template)")
    return Prompt(path.read_text(encoding="utf-8").rstrip("\n"), load_tokenizer(recipe.student.llm), str(path))


def student_vocabulary(recipe: Recipe) -> int:
    """Width of the student's output, from its configuration alone."""
    width: int = read_config(resolve(recipe.student.llm, weights=False)).get_text_config().vocab_size
    return width


def other_column(corpus: Corpus, role: str, spec: ColumnSpec) -> str:
    """One line on why a corpus has no column of this spec: what the nearest one of the same role was made with instead."""
    found = []
    for name in corpus.shards.column_names():
        if name.startswith(f"{role}-"):
            changes = corpus.shards.column(name).spec.differs_from(spec)
            found.append((len(changes), name, changes))
    todo = "run `speechkd teach` on this recipe"
    if not found:
        return f"corpus `{corpus.card.name}` lacks column `{spec.name}` of teacher `{role}`: {todo}"
    _, name, changes = min(found)
    return f"corpus `{corpus.card.name}` has column `{name}` of teacher `{role}`, made with {'; '.join(changes)}: {todo}, or change it back"


def descriptions(corpus: Corpus, name: str, shard: int) -> dict[str, str]:
    """Key -> the first whole answer that a published column has for it, in one shard: what another teacher wrote about the clip.

    Raises InputError for a column that is not there.
    """
    column = corpus.shards.column(name)
    index = column.columns(["key", "shard", "stop"])
    found: dict[str, str] = {}
    for row in np.flatnonzero(index["shard"].to_numpy() == shard).tolist():
        key = index["key"][row].as_py()
        if key not in found and index["stop"][row].as_py() == "eos":
            found[key] = column.read(row).text
    return found


def column_spec(recipe: Recipe, role: str, prompt: Prompt) -> ColumnSpec:
    """What the column of a teacher role is made of; its name ends in a digest of all of it, so other settings are another column."""
    config = recipe.teachers[role]
    identity = config.identity()
    backend, signals = identity["backend"], config.stores()
    teacher = {name: value for name, value in identity.items() if name != "signals"}
    if (model := config.fingerprint()) is not None:
        teacher["fingerprint"] = model
    asked = recipe.prompt.identity()
    for name in ("template", "text", "transcript"):  # the template's text counts, not its place; the others are the student's
        asked.pop(name, None)
    tokenizer = tokenizer_digest(prompt.tokenizer)
    made_of = digest([teacher, signals.model_dump(mode="json"), asked, prompt.text, tokenizer])[:8]
    return ColumnSpec(
        name=f"{role}-{backend}-{Path(recipe.prompt.template).stem}-{made_of}",
        teacher=teacher,
        prompt=prompt.text,
        tokenizer=tokenizer,
        vocab_size=max(len(prompt.tokenizer), config.output_width()),
        signals=signals,
        settings=asked,
    )
