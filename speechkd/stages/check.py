"""`speechkd check CARD|RECIPE|SHARDS`: prove that a file says something valid, or that shards hold the bytes that were published."""

from __future__ import annotations

from pathlib import Path

from speechkd.core.config import read_yaml
from speechkd.core.errors import EXIT_FAILED, InputError
from speechkd.data.cards import load_card, open_source
from speechkd.data.index import open_shards
from speechkd.data.store import Place, UrlPath, place
from speechkd.recipe import load_recipe


def check(given: Path | str) -> int:
    """Print what is good; exit code 1 if published bytes have changed. Raises InputError for what a user wrote wrong."""
    path = place(given)
    if isinstance(path, UrlPath) or path.is_dir():
        return _shards(path)
    data = read_yaml(path)
    if "source" in data and "student" not in data:
        card = load_card(path)
        open_source(card, path.parent)
        print(f"card ok: {card.name}/{card.version}, source {card.source['kind']}, tasks {', '.join(card.tasks) or 'none'}")
        return 0
    if "student" in data or "extends" in data:
        recipe = load_recipe(path)
        for corpus in recipe.data.corpora:
            load_card(Path(corpus.card))
        for name in (recipe.prompt.template, recipe.deepspeed):
            if not Path(name).is_file():
                raise InputError(f"no such file `{name}` ({path})")
        print(f"recipe ok: {recipe.name}, regime {recipe.train.regime}, {recipe.train.steps} steps, roles {', '.join(recipe.train.roles)}")
        return 0
    raise InputError(f"neither a card (key `source`) nor a recipe (key `student`): {path}")


def _shards(path: Place) -> int:
    shards = open_shards(path)
    bad = list(shards.verify())
    for line in bad:
        print(line)
    columns = ", ".join(shards.column_names()) or "none"
    print(f"{shards.dataset}/{shards.version}: {len(shards)} samples in {shards.shards} shards, columns: {columns}: {len(bad)} problems")
    return EXIT_FAILED if bad else 0
