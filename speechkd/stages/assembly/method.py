"""Builds a recipe's losses and live teachers on this rank."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from speechkd.engine.ds_config import read_ds_config, stage
from speechkd.engine.loading import load_causal_lm
from speechkd.models.student import Student
from speechkd.recipe import Recipe
from speechkd.stages.assembly.audio_teacher import load_audio_teacher
from speechkd.stages.assembly.stored_states import stored_states
from speechkd.stages.assembly.vocabulary import shared_ids
from speechkd.teachers.live import AudioTeacher, build_live
from speechkd.train.distiller import Method


def build_method(recipe: Recipe, student: Student) -> Method:
    """The recipe's losses and live teachers. Call it before a checkpoint is loaded: a snapshot teacher is a copy of `student` at step 0."""
    ds_config = read_ds_config(Path(recipe.deepspeed))
    dtype = getattr(torch, recipe.student.dtype)
    partitioned = stage(ds_config) == 3

    def load_llm(name: str) -> nn.Module:
        return load_causal_lm(name, dtype, partitioned, ds_config)

    def load_speech(name: str) -> AudioTeacher:
        return load_audio_teacher(name, student, recipe.student.config_root, load_llm)

    live = {name: build_live(name, config, student, load_llm, load_speech) for name, config in recipe.live.items()}
    shared = {name: shared_ids(name, config, recipe.student) for name, config in recipe.live.items()}
    stored = [stored_states(recipe, name, config) for name, config in recipe.losses.items() if "hidden" in config.needs().stored]
    return Method(losses=recipe.losses, streams=recipe.train.streams, teachers=live, shared=shared, stored=stored[0] if stored else None)
