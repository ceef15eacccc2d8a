"""Validates losses, LoRA and live teachers before any weights load."""

from __future__ import annotations

from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.engine.ds_config import read_ds_config, stage
from speechkd.models.exported import check_features
from speechkd.models.model_folder import config_home, read_config
from speechkd.models.quantised import check_quantised, refuse_quantised
from speechkd.models.student import meta_student
from speechkd.recipe import Recipe
from speechkd.stages.assembly.audio_teacher import check_speech
from speechkd.stages.assembly.model_facts import student_depth, teacher_depth
from speechkd.stages.assembly.stored_states import stored_states
from speechkd.stages.assembly.student import check_init_export, check_init_projector
from speechkd.stages.assembly.vocabulary import missing_tokenizer, shared_ids
from speechkd.teachers.hf_local import LoadedConfig
from speechkd.teachers.live_config import TextLlmConfig


def check_method(recipe: Recipe, dry: bool = False) -> list[str]:
    """Check losses, LoRA and live teachers from configuration files and tokenizers alone.

    Raises InputError for a LoRA target that matches nothing, a layer out of range, vocabularies that disagree, an unfit speech teacher, a
    model that the projector cannot start from, an extractor of another encoder, or a quantised model that cannot be loaded here.
    A `dry` run asks no hub for what `student.config_root` stands in for: it returns one
    line for each check that it had to skip.
    """
    notes = _check_loading(recipe, dry)
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


def _check_loading(recipe: Recipe, dry: bool) -> list[str]:
    """Check what loads with the recipe's models: extractor and encoder belong together, quantised models can be loaded as they are used."""
    student, notes = recipe.student, []
    home = Path(config_home(student.encoder, student.config_root))
    if dry and home.is_dir() and not (home / "preprocessor_config.json").is_file():
        notes.append(f"features of encoder `{student.encoder}`: no preprocessor_config.json on this machine")
    else:
        check_features(student.encoder, student.config_root)
    partitioned = stage(read_ds_config(Path(recipe.deepspeed))) == 3
    for model in [student.llm, *(live.model for live in recipe.live.values() if isinstance(live, TextLlmConfig))]:
        (refuse_quantised if partitioned else check_quantised)(read_config(model, student.config_root), model)
    for role in recipe.train.roles:
        teacher = recipe.teachers[role]
        if isinstance(teacher, LoadedConfig):
            if dry and not Path(config_home(teacher.model, student.config_root)).is_dir():
                notes.append(f"teacher `{role}`: `{teacher.model}` is not on this machine")
            else:
                check_quantised(read_config(teacher.model, student.config_root), teacher.model)
    return notes
