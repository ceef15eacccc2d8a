"""Validates losses, LoRA and live teachers before any weights load."""

from __future__ import annotations

from speechkd.core.errors import InputError
from speechkd.recipe import Recipe
from speechkd.stages.assembly.audio_teacher import check_speech
from speechkd.stages.assembly.model_facts import student_depth, teacher_depth
from speechkd.stages.assembly.stored_states import stored_states
from speechkd.stages.assembly.student import check_init_export, check_init_projector, meta_student
from speechkd.stages.assembly.vocabulary import missing_tokenizer, shared_ids


def check_method(recipe: Recipe, dry: bool = False) -> list[str]:
    """Check losses, LoRA and live teachers from configuration files and tokenizers alone.

    Raises InputError for a LoRA target that matches nothing, a layer out of range, vocabularies that disagree, an unfit speech teacher,
    or a model that the projector cannot start from. A `dry` run asks no hub for what `student.config_root` stands in for: it returns one
    line for each check that it had to skip.
    """
    notes = []
    if recipe.student.lora is not None:
        meta_student(recipe.student)
    check_init_export(recipe.student)
    check_init_projector(recipe.student)
    for name, live in recipe.live.items():
        if dry and (missing := missing_tokenizer(live, recipe.student)) is not None:
            notes.append(f"vocabulary of live teacher `{name}`: the tokenizer of `{missing}` is not on this machine")
        else:
            shared_ids(name, live, recipe.student)
        check_speech(name, live, recipe.student)
    for name, config in recipe.losses.items():
        try:
            if "hidden" in config.needs().live:
                config.pairs(student_depth(recipe.student), teacher_depth(recipe.live[config.teacher_name], recipe.student))
            elif "hidden" in config.needs().stored:
                stored_states(recipe, name, config)
        except InputError as error:
            raise InputError(f"{error} (losses.{name})") from None
    return notes
