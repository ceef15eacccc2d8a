"""Checks and loads speech teachers: exported students and whole speech LLMs that run inside the training step and hear the clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechkd.core.errors import InputError
from speechkd.engine.zero import local_device
from speechkd.models.encoder import layer_mix
from speechkd.models.encoder_families import SPEECH_LLMS
from speechkd.models.exported import llm_of, read_manifest, trained_tensors
from speechkd.models.model_folder import fingerprint, read_config
from speechkd.models.projectors import PROJECTORS, ProjectorConfig
from speechkd.models.projectors.init_from import init_projector
from speechkd.models.projectors.linear import LinearConfig, LinearProjector
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig
from speechkd.stages.assembly.model_facts import is_speech_llm
from speechkd.teachers.live import AudioTeacher
from speechkd.teachers.live_config import LiveConfig, SpeechConfig

OWN_PROJECTOR = LinearConfig(pool=1)
"""The projector inside every model of SPEECH_LLMS: one Linear, no pooling"""


def check_speech(teacher: str, config: LiveConfig, student: StudentConfig) -> None:
    """Raises InputError for a speech teacher that does not fit the student's encoder or positions; other live teachers pass."""
    if not isinstance(config, SpeechConfig):
        return
    if is_speech_llm(config.model, student.config_root):
        _check_speech_llm(teacher, config, student)
        return
    manifest = read_manifest(Path(config.model))
    if manifest.student.lora is not None:
        raise InputError(f"`{config.model}` has its LoRA in separate weights: export it with `--merge` (live.{teacher}.model)")
    if manifest.fingerprints.encoder != fingerprint(student.encoder):
        raise InputError(
            f"`{config.model}` has a different encoder from the student's `{student.encoder}`: set student.encoder to "
            f"its, or name another export (live.{teacher}.model)"
        )
    if manifest.student.encoder_window != student.encoder_window:
        raise InputError(
            f"`{config.model}` hears with `encoder_window: {manifest.student.encoder_window}`: set `student.encoder_window` to that "
            f"(live.{teacher}.model)"
        )
    _check_positions(teacher, config, student, manifest.student.projector)


def _check_speech_llm(teacher: str, config: SpeechConfig, student: StudentConfig) -> None:
    kind = read_config(config.model, student.config_root).model_type
    if kind not in SPEECH_LLMS:
        raise InputError(
            f"`{config.model}` is neither an export nor a speech LLM ({', '.join(SPEECH_LLMS)}), but `{kind}` (live.{teacher}.model)"
        )
    if student.encoder != config.model:
        raise InputError(
            f"`{config.model}` hears through its own encoder, the student through `{student.encoder}`: "
            f"set `student.encoder` to it (live.{teacher}.model)"
        )
    _check_positions(teacher, config, student, OWN_PROJECTOR)


def _check_positions(teacher: str, config: SpeechConfig, student: StudentConfig, projector: ProjectorConfig) -> None:
    """Raises InputError if teacher and student give a clip different numbers of audio positions."""
    with torch.device("meta"):  # the widths (8) do not matter for positions
        ours, theirs = (PROJECTORS.get(block.kind)(block, 8, 8) for block in (student.projector, projector))
    if any(ours.positions(frames) != theirs.positions(frames) for frames in (1, 50, 99, 1500)):
        raise InputError(
            f"`{config.model}` makes a different number of audio positions than the student's projector: set "
            f"student.projector to its (live.{teacher}.model)"
        )


def load_audio_teacher(name: str, student: Student, config_root: str | None, load_llm: Callable[[str], nn.Module]) -> AudioTeacher:
    """Load the speech teacher `name` (export folder or speech LLM) on this rank, without its encoder: the student's is the same."""
    if is_speech_llm(name, config_root):
        whole: Any = load_llm(name)
        whole.set_attn_implementation("eager")  # other implementations return no attention weights
        config = OWN_PROJECTOR.model_copy(update={"init_from": name})
        linear = LinearProjector(config, student.encoder.width, whole.config.get_text_config().hidden_size)
        init_projector(linear)
        return AudioTeacher(layer_mix("last", student.encoder.layers, False), linear, whole).to(local_device())
    folder, manifest = Path(name), read_manifest(Path(name))
    exported = manifest.student
    llm: Any = load_llm(llm_of(folder, manifest))
    llm.set_attn_implementation("eager")  # as above
    mix = layer_mix(exported.encoder_states, student.encoder.layers, exported.normalise_layers)
    width = llm.config.get_text_config().hidden_size
    projector: Any = PROJECTORS.get(exported.projector.kind)(exported.projector, student.encoder.width, width)
    for prefix, part in (("mix.", mix), ("projector.", projector)):
        tensors = {n.removeprefix(prefix): t for n, t in trained_tensors(folder, manifest).items() if n.startswith(prefix)}
        part.load_state_dict(tensors)
    return AudioTeacher(mix, projector, llm).to(local_device())
