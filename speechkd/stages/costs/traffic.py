"""Bytes between GPUs under ZeRO-3 and how many gathers bring them, bytes of a checkpoint, and bytes that a step reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechkd.cluster.profile import ClusterProfile
from speechkd.core.tensors import file_bytes
from speechkd.engine.checkpoint import KEYS
from speechkd.models.model_folder import text_config
from speechkd.models.student import Student
from speechkd.recipe import Recipe
from speechkd.stages.assembly.model_facts import student_depth, teacher_depth, teacher_llm
from speechkd.stages.assembly.stored_states import stored_states
from speechkd.stages.inputs.columns import column_spec
from speechkd.stages.inputs.corpora import open_corpora
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.train.distiller import StoredStates
from speechkd.train.loss_terms import LlmShape, build_term

Shape = tuple[int, ...]
PART_OF_STUDENT = "student."


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathers:
    """What one rank receives of the others' frozen weights."""

    micro_batch: float
    """bytes, forward and backward"""
    calls: int
    """all-gathers a micro-batch, where nothing fits to be kept: one for each block or module with weights of its own, each way"""
    seconds: float
    """at the profile's link"""


def gathers(student: Student, live: int, ds_config: dict[str, Any], profile: ClusterProfile, ranks: int, dtype: torch.dtype) -> Gathers:
    """Under ZeRO-3 over `ranks` ranks. The language model is gathered forward and backward, encoder and live teachers forward only.

    Parameters up to the persistence threshold are whole on each rank. `live`: parameters of live teachers' own models.
    """
    threshold = float(ds_config["zero_optimization"].get("stage3_param_persistence_threshold", 1e5))
    llm = sum(p.numel() for p in student.llm.parameters() if p.numel() > threshold)
    encoder = sum(p.numel() for p in student.encoder.parameters() if p.numel() > threshold)
    received = (2 * llm + encoder + live) * dtype.itemsize * (ranks - 1) / ranks
    inside = ranks <= profile.ranks
    link = (profile.node_link_gbps if inside else profile.link_gbps) * 1e9 / 8
    return Gathers(micro_batch=received, calls=sum(gather_calls(student, threshold)), seconds=received / link)


def gather_calls(student: Student, threshold: float) -> tuple[int, int]:
    """(forward, backward) all-gathers of a student's micro-batch under ZeRO-3 with its blocks as leaf modules; live teachers' apart.

    Each block is one, and each other module that has parameters above the persistence threshold. Gradients pass through the blocks, the
    final norm, projector and layer mix; the LM head's loss has its gradients from the forward pass.
    """
    llm = student.llm
    blocks = {id(block) for block in (*student.encoder.blocks(), *llm.blocks())}
    not_called = {id(llm.lm.get_output_embeddings())}

    def units(module: nn.Module) -> int:
        if id(module) in not_called:
            return 0
        own = module.parameters(recurse=id(module) in blocks)
        inner = 0 if id(module) in blocks else sum(map(units, module.children()))
        return inner + any(_numel(p) > threshold for p in own)

    learned = units(student.mix) + units(student.projector)
    through = units(llm.lm) - units(llm.lm.get_input_embeddings())
    return units(student.encoder) + learned + units(llm), through + learned


def _numel(param: nn.Parameter) -> int:
    return int(getattr(param, "ds_numel", param.numel()))


def trained_shapes(recipe: Recipe, student: Student) -> list[tuple[str, Shape]]:
    """Names and shapes of everything that trains, as a checkpoint holds them: the student's, then what losses learn."""
    shapes = [(PART_OF_STUDENT + name, tuple(p.shape)) for name, p in student.trainable()]
    ours = LlmShape(depth=student_depth(recipe.student), width=student.llm.width)
    theirs = {name: _live_shape(recipe, name) for name in recipe.live}
    for name, config in recipe.losses.items():
        if "hidden" in config.needs().stored:
            states: StoredStates = stored_states(recipe, name, config)
            theirs[""] = LlmShape(depth=states.depth, width=states.width)
    with torch.device("meta"):
        for name, config in recipe.losses.items():
            part = build_term(name, config, recipe.train.streams, ours, theirs).part
            if part is not None:
                shapes += [(f"parts.{name}.{key}", tuple(p.shape)) for key, p in part.named_parameters() if p.requires_grad]
    return shapes


def _live_shape(recipe: Recipe, name: str) -> LlmShape:
    config = recipe.live[name]
    width = text_config(teacher_llm(config, recipe.student), recipe.student.config_root).hidden_size
    return LlmShape(depth=teacher_depth(config, recipe.student), width=width)


def checkpoint_bytes(shapes: list[tuple[str, Shape]]) -> int:
    """Of weights.safetensors and moments.safetensors, to the byte."""
    return file_bytes(shapes) + file_bytes([(f"{name}.{key}", shape) for name, shape in shapes for key in KEYS])


def bytes_per_example(recipe: Recipe) -> float:
    """Mean bytes of audio and columns that one example reads. Raises InputError where the shards are not there."""
    prompt = None
    total = examples = 0.0
    for corpus in open_corpora(recipe.data):
        shards = corpus.shards
        audio = _tar_bytes(shards.manifest) / max(1, shards.manifest["totals"]["samples"])
        for role in recipe.train.roles:
            if not corpus.config.weight(role):
                continue
            prompt = prompt or open_prompt(recipe.prompt, recipe.student.llm)
            column = shards.column(column_spec(role, recipe.teachers[role], recipe.prompt, prompt).name)
            count = column.manifest["totals"]["examples"]
            total += count * audio + _tar_bytes(column.manifest)
            examples += count
    return total / max(1.0, examples)


def _tar_bytes(manifest: Any) -> float:
    return float(sum(entry["bytes"] for name, entry in manifest["files"].items() if Path(name).suffix == ".tar"))
