"""`speechkd export`: writes a run's newest checkpoint as a student that anyone can load, and compares it with training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.files import sha256_bytes
from speechkd.core.log import say
from speechkd.data.training_range import RANGE
from speechkd.engine.checkpoint import WEIGHTS, latest, read_trainer, why_invalid
from speechkd.engine.export import write_export
from speechkd.engine.foreign import check_replaceable, write_foreign
from speechkd.models.exported import Fingerprints, read_manifest
from speechkd.models.formats import FORMATS, OWN, check_fits
from speechkd.models.lora import lora_layers
from speechkd.models.student import meta_student
from speechkd.models.student_config import StudentConfig
from speechkd.recipe import Recipe
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.lineage import record_export
from speechkd.stages.results import send
from speechkd.stages.run_folder import CHECKPOINTS, NOT_THE_STUDENTS, PROBES, run_recipe, same_recipe
from speechkd.teachers.prompts import PromptConfig

STUDENT = "student."
"""Prefix of the student's names inside the module that is trained"""


def export_run(recipe: Recipe, out: Path, merge: bool = False, form: str = OWN) -> Path:
    """`export` of the recipe's run, or `export_foreign`. Raises InputError where that was trained by another recipe."""
    same_recipe(recipe.run_dir, recipe, NOT_THE_STUDENTS)
    if form != OWN:
        return export_foreign(recipe.run_dir, out, form)
    exported = export(recipe.run_dir, out, merge=merge)
    send(recipe.tracking, recipe.run_dir)
    return exported


def export_foreign(run_dir: Path, out: Path, form: str) -> Path:
    """A run's newest checkpoint as the folder of another engine, LoRA merged (`models/formats`).

    Raises InputError where the student does not fit, or there is no checkpoint; DataError where the engine's own classes load another.
    """
    recipe = run_recipe(run_dir)
    check_fits(form, meta_student(recipe.student))
    check_replaceable(out)
    between = out.with_name(f".{out.name}.speechkd")
    source, trainer = _checkpoint(run_dir, None)
    try:
        _write(recipe, run_dir, between, source, trainer, recipe.student.lora is not None)
        card = _card(recipe, trainer, {}, FORMATS.get(form)().USAGE)
        difference = write_foreign(out, between, form, card)
    finally:
        shutil.rmtree(between, ignore_errors=True)
    compared = "no class here loads it" if difference is None else f"its own classes' logits within {difference:.1e} of the student's"
    say(f"export: `{out}` from {source.name} as `{form}` ({compared})")
    return out


def export(run_dir: Path, out: Path, checkpoint: Path | None = None, merge: bool = False) -> Path:
    """Export a run's newest checkpoint (or `checkpoint`) to `out`; an export of that very checkpoint is left as it is.

    Raises InputError where there is no run or checkpoint, DataError where what comes back differs from what was trained.
    """
    recipe = run_recipe(run_dir)
    _mergeable(recipe.name, recipe.student, merge)
    source, trainer = _checkpoint(run_dir, checkpoint)
    if _is_of(out, trainer, merge):
        say(f"export: `{out}` is of this checkpoint already")
    else:
        difference = _write(recipe, run_dir, out, source, trainer, merge)
        compared = "no probe" if difference is None else f"logits within {difference:.1e} of training's"
        say(f"export: `{out}` from {source.name}, read back ({compared})")
    record_export(run_dir, out, recipe.name)
    return out


def _checkpoint(run_dir: Path, named: Path | None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to export, and its trainer's state. Raises InputError where there is none."""
    source = latest(run_dir / CHECKPOINTS) if named is None else named
    if named is not None and (why := why_invalid(named)):
        raise InputError(f"`{named}` is no valid checkpoint: {why}; name another with --checkpoint")
    if source is None:
        raise InputError(f"no valid checkpoint in `{run_dir / CHECKPOINTS}`: train first")
    return source, read_trainer(source)


def _write(recipe: Recipe, run_dir: Path, out: Path, source: Path, trainer: dict[str, Any], merge: bool) -> float | None:
    """Write the export of a checkpoint; returns how far its logits are from training's."""
    from safetensors.torch import load_file

    trained = load_file(source / WEIGHTS)  # what a loss learned for itself ends with training
    tensors = {name.removeprefix(STUDENT): tensor for name, tensor in trained.items() if name.startswith(STUDENT)}
    return write_export(
        out,
        tensors=tensors,
        student=_without_training(recipe.student),
        fingerprints=Fingerprints(encoder=trainer["base"]["encoder"], llm=trainer["base"]["llm"]),
        merge=merge,
        prompt=_prompt(recipe.prompt, recipe.student.llm, trainer, source),
        step=trainer["step"],
        recipe_digest=trainer["recipe"],
        checkpoint=source.name,
        card=_card(recipe, trainer, tensors),
        probe=run_dir / PROBES / f"{source.name}.safetensors",
        training_range=run_dir / RANGE,
    )


def _card(recipe: Recipe, trainer: dict[str, Any], tensors: Mapping[str, Tensor], usage: str | None = None) -> str:
    """The README of an export; `usage` replaces what it says of speechkd's own format."""
    template = Environment(loader=PackageLoader("speechkd.stages", "."), autoescape=False).get_template("model_card.md.j2")
    return template.render(recipe=recipe, step=trainer["step"], tensors={n: list(t.shape) for n, t in tensors.items()}, usage=usage)


def _mergeable(recipe: str, config: StudentConfig, merge: bool) -> None:
    """Raises InputError where there is no LoRA to fold in, or folding it in would change what the student says."""
    lora = config.lora
    if merge and lora is None:
        raise InputError(f"`--merge` folds LoRA into the language model, and recipe `{recipe}` trains no LoRA: export without it")
    if merge and lora is not None and lora.scope == "audio" and lora_layers(meta_student(config).llm):
        raise InputError(
            f"`--merge` folds LoRA into every position, and recipe `{recipe}` trains it at audio positions only "
            "(student.lora.scope: audio): export without it"
        )


def _prompt(config: PromptConfig, llm: str, trainer: dict[str, Any], checkpoint: Path) -> str:
    """The template that the student was trained with. Raises InputError where its file says something else now."""
    text = open_prompt(config, llm).text
    if trainer.get("prompt") not in (None, sha256_bytes(text.encode())):  # checkpoints did not always say
        raise InputError(f"`{config.template}` has changed since `{checkpoint}` was trained with it: put the old text back, then export")
    return text


def _is_of(out: Path, trainer: dict[str, Any], merge: bool) -> bool:
    """Whether `out` is a whole export of this checkpoint; a damaged one is made again."""
    try:
        manifest = read_manifest(out)
    except InputError:
        return False
    return (manifest.step, manifest.recipe_digest, manifest.merged) == (trainer["step"], trainer["recipe"], merge)


def _without_training(student: StudentConfig) -> StudentConfig:
    """The student's block for an export: nothing that only training reads, models by names that hold in any working folder."""
    names = {"encoder": _absolute(student.encoder), "llm": _absolute(student.llm)}
    return student.model_copy(update={**names, "init_from": None, "config_root": None, "attention": "auto", "recompute": "off"})


def _absolute(name: str) -> str:
    """A model folder's full path, or a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
