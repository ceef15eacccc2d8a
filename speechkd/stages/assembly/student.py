"""A recipe's student: on the meta device, on this rank, and started from an export or a model that its projector names."""

from __future__ import annotations

from pathlib import Path

import torch

from speechkd.core.errors import InputError
from speechkd.core.seeds import torch_seed
from speechkd.engine.ds_config import read_ds_config, stage
from speechkd.engine.loading import load_causal_lm, load_encoder
from speechkd.engine.zero import local_device
from speechkd.models.architectures import meta_causal_lm, meta_encoder
from speechkd.models.exported import projector_config, read_manifest, trained_tensors
from speechkd.models.model_folder import config_home, fingerprint
from speechkd.models.projectors.init_from import check_init_from, init_projector
from speechkd.models.student import Student
from speechkd.recipe import Recipe


def meta_student(recipe: Recipe) -> Student:
    """The recipe's student on the meta device, from configuration files alone (`student.config_root` stands in for a hub out of reach).

    Raises InputError for a LoRA target that matches nothing.
    """
    dtype = getattr(torch, recipe.student.dtype)
    encoder = meta_encoder(config_home(recipe.student.encoder, recipe.student.config_root), dtype)
    llm = meta_causal_lm(config_home(recipe.student.llm, recipe.student.config_root), dtype)
    config = recipe.student
    with torch.device("meta"):
        return Student(encoder, llm, config.projector, config.normalise_layers, config.lora, config.encoder_states)


def build_student(recipe: Recipe) -> Student:
    """The student on this rank: frozen models partitioned as they load, what trains made from the seed (equal on all ranks)."""
    memory = read_ds_config(Path(recipe.deepspeed))
    dtype = getattr(torch, recipe.student.dtype)
    split = stage(memory) == 3
    encoder = load_encoder(recipe.student.encoder, dtype, split, memory)
    llm = load_causal_lm(recipe.student.llm, dtype, split, memory)
    config = recipe.student
    with torch_seed(recipe.seed, "student"):
        student = Student(encoder, llm, config.projector, config.normalise_layers, config.lora, config.encoder_states)
        init_projector(student.projector)
    if recipe.student.init_from:
        _init_from_export(student, Path(recipe.student.init_from))
    return student.to(local_device())


def _init_from_export(student: Student, folder: Path) -> None:
    """Layer mix and projector of an export, under LoRA if the student has it there. What trains is not partitioned yet."""
    own = dict(student.named_parameters())
    for name, tensor in trained_tensors(folder, read_manifest(folder)).items():
        home, _, last = name.rpartition(".")
        own.get(name, own.get(f"{home}.base_layer.{last}", tensor)).data.copy_(tensor)


def check_init_export(recipe: Recipe) -> None:
    """Raises InputError for an export that a student of this recipe cannot start from."""
    if not recipe.student.init_from:
        return
    folder, key = Path(recipe.student.init_from), "student.init_from"
    manifest = read_manifest(folder)
    if manifest.lora is not None:
        raise InputError(f"`{folder}` has LoRA apart from its base: export it with `--merge`, and name its `llm` folder as the LLM ({key})")
    for part, name, base in (("encoder", recipe.student.encoder, manifest.encoder), ("llm", recipe.student.llm, manifest.llm)):
        if fingerprint(name) != base.fingerprint:
            raise InputError(f"`{folder}` was trained before another {part} than `{name}` ({key})")
    theirs = projector_config(folder, manifest), manifest.mix, manifest.normalise_layers
    if theirs != (recipe.student.projector, recipe.student.encoder_states, recipe.student.normalise_layers):
        raise InputError(
            f"`{folder}` has another projector or layer mix than `student.projector`, `mix` and `normalise_layers` say ({key})"
        )


def check_init_projector(recipe: Recipe) -> None:
    """Raises InputError where the projector cannot start from the model that it names; one on the hub is not asked yet."""
    source = getattr(recipe.student.projector, "init_from", None)
    if source is not None and Path(source).is_dir():
        check_init_from(meta_student(recipe).projector, source)
