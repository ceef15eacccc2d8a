"""Which token ids the student and a live teacher share: a loss compares their distributions on no others."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.models.model_folder import config_home
from speechkd.recipe import Recipe
from speechkd.stages.assembly.model_facts import llm_behind, tokenizer_behind, vocabulary_width


def shared_ids(recipe: Recipe, teacher: str) -> Tensor | None:
    """Boolean over ids below both vocabularies' ends: which the student and a live teacher share; None where they are one vocabulary.

    Raises InputError naming the first id on which the tokenizers disagree: their distributions would be compared token by wrong token.
    """
    name = llm_behind(recipe, teacher)
    if name == recipe.student.llm:
        return None
    mine, other = ({number: token for token, number in tokenizer_behind(recipe, t).get_vocab().items()} for t in ("", teacher))
    for number in sorted(mine.keys() & other.keys()):
        if mine[number] != other[number]:
            raise InputError(
                f"vocabularies disagree: id {number} is `{mine[number]}` for the student (`{recipe.student.llm}`), `{other[number]}` for "
                f"`{name}` (live.{teacher}): distil its answers instead, or choose a teacher of the same family"
            )
    widths = vocabulary_width(recipe, ""), vocabulary_width(recipe, teacher)
    shared_W = torch.zeros(min(widths), dtype=torch.bool)
    shared_W[[number for number in mine.keys() & other.keys() if number < len(shared_W)]] = True
    return None if widths[0] == widths[1] and bool(shared_W.all()) else shared_W


def tokenizer_not_here(recipe: Recipe, teacher: str) -> str | None:
    """Of the models whose vocabularies are compared, the first that has only a configuration file here, and no tokenizer; else None."""
    names = recipe.student.llm, llm_behind(recipe, teacher)
    for name in names if names[0] != names[1] else ():
        if config_home(name, recipe.student.config_root) != name and not _cached(name):
            return name
    return None


def _cached(name: str) -> bool:
    """Whether a hub model's tokenizer is on this machine; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in ("tokenizer.json", "tokenizer.model", "vocab.json"))
