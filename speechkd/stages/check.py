"""`speechkd check CARD|RECIPE|SHARDS`: validates a card or recipe, or verifies the bytes of published shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from speechkd.core.config import read_extending
from speechkd.core.errors import EXIT_FAILED, DataError, InputError, unknown_name
from speechkd.core.files import no_such_file
from speechkd.core.text import folded, printable
from speechkd.data.cards import Card, allow_outside, list_corpus, load_card, open_source
from speechkd.data.shards.index import open_shards
from speechkd.data.sources.base import Item, MissingData
from speechkd.data.sources.paths import data_root, is_there
from speechkd.data.storage.store import Location, UrlPath, list_folder, parse_location
from speechkd.engine.ds_config import AUTO
from speechkd.evaluation.scorers.characters import spaceless
from speechkd.recipe import Recipe, load_recipe
from speechkd.stages.inputs.corpora import open_corpora
from speechkd.stages.inputs.names import check_training_names
from speechkd.stages.shard import write_sample
from speechkd.teachers.prompts import task_applies

TRIED = 8
"""How many items are decoded to try a card"""


def check(given: Path | str) -> int:
    """Print what was found; exit code 1 if published bytes have changed, or all items that were tried are rejected.

    Raises InputError for an invalid card or recipe, and for a card whose data is here in part.
    """
    path = parse_location(given)
    if isinstance(path, UrlPath) or path.is_dir():
        return _shards(path)
    data = read_extending(path)
    if "source" in data and "student" not in data:
        return _card(path)
    if "student" in data:
        recipe = load_recipe(path)
        cards = [load_card(Path(corpus.card)) for corpus in recipe.data.corpora]
        for name in (recipe.prompt.template, *([] if recipe.deepspeed == AUTO else [recipe.deepspeed])):
            if not Path(name).is_file():
                raise InputError(f"{no_such_file(Path(name))} ({path})")
        recipe.prompt.questions()  # its pool is a file, too
        _check_tasks(recipe, cards)
        _check_data(recipe)
        _print(f"recipe ok: {recipe.name}, regime {recipe.train.regime}, {recipe.train.steps} steps, roles {', '.join(recipe.train.roles)}")
        return 0
    raise InputError(f"neither a card (key `source`) nor a recipe (key `student`): {path}")


def _check_tasks(recipe: Recipe, cards: Sequence[Card]) -> None:
    """Refuse a task that no card has; whether each corpus has what its teacher is asked, the shards will say."""
    tasks = {name: None for card in cards for name in card.tasks}
    named = {f"teachers.{role}.tasks": recipe.teachers[role].tasks for role in recipe.train.roles}
    for where, names in {**named, "evaluation.tasks": recipe.evaluation.tasks}.items():
        for name in names or ():
            if name not in tasks:
                raise InputError(unknown_name("task", name, tasks, where))


def _check_data(recipe: Recipe) -> None:
    """Check fields, splits and languages that the recipe names, where the shards are there."""
    try:
        corpora = open_corpora(recipe.data)
    except InputError as missing:
        _print(f"fields, splits and languages are not checked yet: {missing}")
        return
    check_training_names(recipe, corpora)


def _card(path: Path) -> int:
    """Check a card; where its data is here, also list all items and decode the first ones as `speechkd shard` will."""
    allow_outside(path)
    card = load_card(path)
    summary = f"card ok: {card.name}/{card.version}, source {card.source['kind']}, tasks {', '.join(card.tasks) or 'none'}"
    try:
        source = open_source(card, path.parent)
    except MissingData as missing:
        if present := _present(card, path.parent):
            raise InputError(f"{missing}; `{present}` is there") from missing
        _print(f"{summary}\nits data is not here yet: {missing}")
        return 0
    listing = list_corpus(card, source, path.parent)
    items = listing.items
    _print(
        f"{summary}\n{len(items)} items: {_counts(item.split for item in items)}; fields: {_counts(n for i in items for n in i.metadata)}"
    )
    with TemporaryDirectory(prefix="speechkd-check-") as folder:
        tried = card.model_copy(update={"shard_samples": TRIED, "quarantine_rate": 1.0})
        manifest, rejected = write_sample(tried, path.parent, items[:TRIED], Path(folder))
    total = manifest["totals"]
    _print(f"first {manifest['input']} items: {total['samples']} samples, {total['seconds']:.1f} s, {len(rejected)} rejected")
    for entry in rejected:
        _print(f"rejected `{entry['key']}`: {entry['reason']}")
    for line in [
        *listing.unmatched,
        *_doubts(card, items),
        *(["none of them has audio"] if total["samples"] and not total["seconds"] else []),
    ]:
        _print(f"look again: {line}")
    if rejected and not total["samples"]:
        _print(f"all of the first {manifest['input']} items are rejected: `speechkd shard` would publish nothing of them")
        return EXIT_FAILED
    return 0


def _present(card: Card, folder: Path) -> str | None:
    """A path of the card's source that exists: then the data is here, and a path that does not is misspelt."""
    paths = (value for key, value in card.source.items() if key != "kind" and isinstance(value, str) and value.strip("./"))
    return next((name for name in paths if is_there(data_root(folder) / name, Path.exists)), None)


def _doubts(card: Card, items: Sequence[Item]) -> Iterator[str]:
    """Warnings about tasks whose labels are allowed but look like a mistake."""
    for name, task in card.tasks.items():
        labels = Counter(str(item.metadata[task.field]) for item in items if task_applies(task, item.metadata))
        if not labels and task.field != card.audio.duration_field:
            yield f"no item answers task `{name}` (field `{task.field}`)"
        if task.kind == "words" and (spelled := [value for value in labels if spaceless(value)]):
            yield (
                f"task `{name}` compares words, but {sum(labels[v] for v in spelled)} labels are of a script without spaces, e.g. "
                f"`{spelled[0][:40]}`: `kind: characters` compares characters"
            )
        known = {folded(choice) for choice in task.choices}
        odd = [value for value in labels if task.kind == "choice" and known and folded(value) not in known]
        if odd:
            yield f"{sum(labels[v] for v in odd)} items answer task `{name}` with none of its choices, e.g. `{odd[0][:80]}`"


def _counts(names: Iterable[str]) -> str:
    counts = Counter(names)
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts)) or "none"


def _shards(path: Location) -> int:
    whole = path.absolute() if isinstance(path, Path) else path
    shard_again = f"repair: `speechkd shard CARD --out {whole.parent.parent} --repair`, with the card of {whole.parent.name}/{whole.name}"
    try:
        shards = open_shards(path)
    except DataError as damage:
        _print(f"{damage}\n{shard_again}")
        return EXIT_FAILED
    bad = list(shards.verify())
    for line in bad:
        _print(line)
    columns = ", ".join(shards.column_names()) or "none"
    _print(f"{shards.dataset}/{shards.version}: {len(shards)} samples in {shards.shards} shards, columns: {columns}: {len(bad)} problems")
    of_columns = {name for name in list_folder(path / "columns") for line in bad if f"columns/{name}" in line}
    if any("columns/" not in line for line in bad):
        _print(shard_again)
    if of_columns:
        _print(f"repair: `speechkd teach RECIPE --repair`, with the recipe of {', '.join(sorted(of_columns))}")
    return EXIT_FAILED if bad else 0


def _print(text: str) -> None:
    """Print lines that hold names and values of a corpus."""
    print(printable(text))
