"""Validates losses, LoRA and live teachers before any weights load."""

from __future__ import annotations

from speechkd.core.errors import InputError
from speechkd.recipe import Recipe
from speechkd.stages.assembly.audio_teacher import check_speech
from speechkd.stages.assembly.model_facts import depth
from speechkd.stages.assembly.stored_states import stored_states
from speechkd.stages.assembly.student import check_init_export, check_init_projector, meta_student
from speechkd.stages.assembly.vocabulary import shared_ids, tokenizer_not_here


def check_method(recipe: Recipe, dry: bool = False) -> list[str]:
    """Check losses, LoRA and live teachers from configuration files and tokenizers alone.

    Raises InputError: a LoRA target that matches nothing, a layer out of range, vocabularies that disagree, an unfit speech teacher,
    a model that the projector cannot start from. A `dry` run asks no hub for what `student.config_root` stands in for, and returns what
    could not be checked for want of it, in words.
    """
    notes = []
    if recipe.student.lora is not None:
        meta_student(recipe)
    check_init_export(recipe)
    check_init_projector(recipe)
    for name in recipe.live:
        if dry and (missing := tokenizer_not_here(recipe, name)) is not None:
            notes.append(f"vocabulary of live teacher `{name}`: the tokenizer of `{missing}` is not on this machine")
        else:
            shared_ids(recipe, name)
        check_speech(recipe, name)
    for name, config in recipe.losses.items():
        try:
            if "hidden" in config.needs().live:
                config.pairs(depth(recipe, ""), depth(recipe, config.teacher_name))
            elif "hidden" in config.needs().stored:
                stored_states(recipe, name, config)
        except InputError as error:
            raise InputError(f"{error} (losses.{name})") from None
    return notes
