"""Builds a recipe's student with weights on this rank; checks what it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechkd.core.errors import InputError
from speechkd.core.seeds import torch_seed
from speechkd.engine.ds_config import stage
from speechkd.engine.loading import load_causal_lm, load_encoder
from speechkd.engine.zero import local_device
from speechkd.models.attention import Picked, pick_attention
from speechkd.models.exported import read_manifest, trained_tensors
from speechkd.models.language_model import LanguageModel
from speechkd.models.lora import LoraConfig
from speechkd.models.model_folder import fingerprint
from speechkd.models.projectors.init_from import check_init_from, init_projector
from speechkd.models.student import Student, meta_student
from speechkd.models.student_config import StudentConfig


def build_student(config: StudentConfig, ds_config: Mapping[str, Any], seed: int) -> Student:
    """The student on this rank: frozen models partitioned as they load, what trains made from the seed (equal on all ranks).

    `ds_config`: the DeepSpeed file, as `read_ds_config` returned it.
    """
    dtype = getattr(torch, config.dtype)
    partitioned = stage(ds_config) == 3
    encoder = load_encoder(config.encoder, dtype, partitioned, ds_config)
    llm = load_causal_lm(config.llm, dtype, partitioned, ds_config)
    with torch_seed(seed, "student"):
        student = Student(encoder, llm, config)
        init_projector(student.projector)
    if config.init_from:
        _init_from_export(student, Path(config.init_from))
    return student.to(local_device())


def set_attention(llm: LanguageModel, config: StudentConfig, device: torch.device) -> Picked:
    """Give the language model the attention that the recipe asks for. Raises InputError where it has none of that name."""
    picked = pick_attention(llm.lm, config.attention, device)
    llm.lm.set_attn_implementation(picked.name)
    return picked


def _init_from_export(student: Student, folder: Path) -> None:
    """Copy what an export trained into the student, before parameters are partitioned: mix, projector, and LoRA where the export has it.

    A projector without LoRA goes under the student's, if that has it.
    """
    parameters = dict(student.named_parameters())
    for name, tensor in trained_tensors(folder, read_manifest(folder)).items():
        home, _, last = name.rpartition(".")
        parameters.get(name, parameters.get(f"{home}.base_layer.{last}", tensor)).data.copy_(tensor)


def check_init_export(student: StudentConfig) -> None:
    """Raises InputError for an export that this student cannot start from."""
    if not student.init_from:
        return
    folder, key = Path(student.init_from), "student.init_from"
    manifest = read_manifest(folder)
    exported, expected = manifest.student, manifest.fingerprints
    if exported.lora is not None and (other := _other_lora(exported.lora, student.lora)):
        raise InputError(
            f"`{folder}` has LoRA with another `{other}` than `student.lora`: set that to the export's, or export it with `--merge` and "
            f"name its `llm` folder as the LLM ({key})"
        )
    for part, name, of_export in (("encoder", student.encoder, expected.encoder), ("llm", student.llm, expected.llm)):
        if fingerprint(name) != of_export:
            raise InputError(f"`{folder}` was trained before another {part} than `{name}` ({key})")
    for name in ("projector", "encoder_states", "encoder_window", "normalise_layers"):
        if getattr(exported, name) != getattr(student, name):
            raise InputError(f"`{folder}` has another `{name}` than `student.{name}`: set that to the export's ({key})")


def _other_lora(exported: LoraConfig, ours: LoraConfig | None) -> str:
    """The first key by which LoRA trained with one is not LoRA of the other; empty where there is none. Dropout may differ."""
    mine = None if ours is None else ours.model_dump(exclude={"dropout"})
    theirs = exported.model_dump(exclude={"dropout"})
    return "lora" if mine is None else next((name for name, value in theirs.items() if mine[name] != value), "")


def check_init_projector(config: StudentConfig) -> None:
    """Raises InputError where the projector cannot start from the local model that it names; hub ids are not checked here."""
    source = config.projector.starts_from()
    if source is not None and Path(source).is_dir():
        check_init_from(meta_student(config).projector, source)
