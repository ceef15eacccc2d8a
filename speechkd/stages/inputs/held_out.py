"""The held-out examples of a run: the same columns and prompts as training's, on a split that is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from speechkd.core.errors import InputError
from speechkd.core.types import Batch
from speechkd.data.plan.plan import ExampleRef
from speechkd.models.collate import Collator
from speechkd.models.prompt import Prompt
from speechkd.recipe import Recipe
from speechkd.stages.inputs.corpora import check_split, open_corpora
from speechkd.stages.inputs.sources import TrainSource, make_loader, open_train_sources
from speechkd.train.config import HeldOutConfig
from speechkd.train.held_out import Group, draw


def check_held_out(recipe: Recipe) -> None:
    """Raises InputError for a held-out split that no corpus has, or one that is trained on."""
    if recipe.train.held_out is None:
        return
    split, corpora = recipe.train.held_out.split, open_corpora(recipe.data)
    for corpus in corpora:
        if split in corpus.config.train_splits:
            raise InputError(f"split `{split}` of corpus `{corpus.card.name}` is trained on: hold out another (train.held_out.split)")
    check_split(split, corpora, "train.held_out.split")


def open_held_out(
    recipe: Recipe, config: HeldOutConfig, prompt: Prompt, collator: Collator
) -> tuple[dict[Group, list[ExampleRef]], Callable[[Sequence[ExampleRef]], Batch]]:
    """The fixed subset by task and language, and what loads it. Raises InputError as for training's sources."""
    sources = open_train_sources(recipe, prompt, held_out=config.split)
    examples: dict[Group, list[tuple[str, ExampleRef]]] = {}
    for number, source in enumerate(sources):
        for group, name, ref in _examples(number, source, several=len({s.stream for s in sources}) > 1):
            examples.setdefault(group, []).append((name, ref))
    return draw(examples, config.examples), make_loader(recipe, sources, prompt, collator)


def _examples(number: int, source: TrainSource, several: bool) -> list[tuple[Group, str, ExampleRef]]:
    column = source.reader.column
    assert column is not None, "a training source reads a column"
    index = column.read_index(["turn", "sample"])
    turns, rows = index["turn"].to_pylist(), index["sample"].to_numpy()
    samples = {sample.row: sample for sample in source.corpus.shards.samples()}
    out = []
    for position in range(len(source.plan_source)):
        row = source.plan_source.row(position)
        sample = samples[int(rows[row])]
        task = turns[row].removeprefix("task-")
        group = (f"{source.stream} {task}".replace("/", "-") if several else task, str(sample.metadata.get("language", "")))
        out.append((group, f"{sample.key}/{turns[row]}", ExampleRef(number, row)))
    return out
