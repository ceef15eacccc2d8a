"""A run whose corpora have grown since it began: refused, or continued in a new epoch where the recipe accepts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechkd.core.errors import InputError
from speechkd.data.cards import load_card
from speechkd.data.plan.plan import ORDER
from speechkd.data.shards.index import open_shards
from speechkd.engine.checkpoint import read_trainer
from speechkd.recipe import Recipe
from speechkd.stages.inputs.corpora import Corpus, open_corpora

ACCEPT = "--set train.accept_grown_data=true"


def versions_of(recipe: Recipe) -> dict[str, str]:
    """Version of every corpus, by its name, as the cards say."""
    cards = [load_card(Path(corpus.card)) for corpus in recipe.data.corpora]
    return {card.name: card.version for card in cards}


def plan_facts(recipe: Recipe, plan: str, stored: Mapping[str, Any] | None, newest: Path | None, where: Path) -> dict[str, Any]:
    """What the run folder's record says about the data: `plan`, `versions`, `grown_at`, and the `earlier` plans.

    `stored`: the record so far. Raises InputError for other data than the run's, unless they are the run's, grown, and the recipe accepts
    that. Before a first checkpoint, nothing was trained on yet: the run begins on the data as they are now.
    """
    fresh: dict[str, Any] = {"plan": plan, "order": ORDER, "versions": versions_of(recipe), "grown_at": 0, "earlier": []}
    if stored is None:
        return fresh
    if (order := stored.get("order", 2)) != ORDER:
        raise InputError(
            f"run folder `{where}` was begun with plan order {order}, this version deals examples in order {ORDER}: use another `name`, or "
            f"continue with the version that began it"
        )
    facts = fresh | {"grown_at": stored.get("grown_at", 0), "earlier": stored.get("earlier", [])}
    trainer = read_trainer(newest) if newest is not None else None
    if stored.get("plan") == plan:
        if trainer is None or of_this_run(trainer, facts):
            return facts
        changed = f"`{newest}` was written before the data grew at step {facts['grown_at']}"
    else:
        changed = f"digest {str(stored.get('plan'))[:8]}, this one is {plan[:8]}"
        problem = _more_than_grown(recipe, stored.get("versions", {}))
        if problem is not None:
            raise InputError(f"run folder `{where}` belongs to other data ({changed}; {problem}): use another `name`, or remove it")
    if not recipe.train.accept_grown_data:
        way_out = f"`{ACCEPT}` begins a new epoch there, or use another `name`"
        raise InputError(f"run folder `{where}` belongs to other data ({changed}), which have grown since: {way_out}")
    earlier = [*facts["earlier"], stored["plan"]] + ([trainer["plan"]] if trainer is not None else [])
    return facts | {"grown_at": trainer["step"] if trainer is not None else 0, "earlier": sorted({*earlier} - {plan})}


def of_this_run(trainer: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was trained on the run's data, or on what they were when they grew at its very step."""
    if trainer["plan"] == facts["plan"]:
        return bool(trainer["step"] >= facts.get("grown_at", 0))
    return trainer["step"] == facts.get("grown_at", 0) and trainer["plan"] in facts.get("earlier", [])


def _more_than_grown(recipe: Recipe, before: Mapping[str, str]) -> str | None:
    """Why the data differ otherwise than by growing; None where every corpus is as it was or grew from it, and one did."""
    corpora = open_corpora(recipe.data)
    for corpus in corpora:
        name, was = corpus.card.name, before.get(corpus.card.name)
        if was is None:
            return f"corpus `{name}` is new"
        if was not in _ancestors(corpus):
            return f"corpus `{name}` {corpus.card.version} does not grow its version {was}"
    if all(before[corpus.card.name] == corpus.card.version for corpus in corpora):
        return "no corpus has a new version"
    return None


def _ancestors(corpus: Corpus) -> list[str]:
    """This version and those that it grew from, newest first."""
    shards, found = corpus.shards, [corpus.shards.version]
    while (version := shards.manifest.get("grows")) is not None and version not in found:
        found.append(version)
        shards = open_shards(shards.root.parent / version)
    return found
