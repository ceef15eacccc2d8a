"""Initialises a projector from a pretrained model: from a Whisper decoder (`whisper_init`) or from the projector of a speech LLM.

With encoder, `linear` projector and language model of one speech LLM, the student is that speech LLM and understands audio from the first
step (Qwen2-Audio, Qwen2.5-Omni; the student of arXiv 2509.18579).
"""

from __future__ import annotations

from typing import Any

import torch

from speechkd.core.errors import InputError
from speechkd.core.tensors import Stored, read_tensor
from speechkd.models.model_folder import checkpoint_tensors, local_folder
from speechkd.models.projectors.whisper_init import init_from_whisper, whisper_fit

SPEECH_PREFIXES = (
    "multi_modal_projector.linear.",
    "model.multi_modal_projector.linear.",
    "thinker.audio_tower.proj.",
    "model.audio_tower.proj.",
    "audio_tower.proj.",
)
"""Prefixes of a speech LLM's own projector"""


def check_init_from(projector: Any, path_or_id: str) -> None:
    """Raises InputError where a projector cannot start from a checkpoint; reads headers alone."""
    if hasattr(projector, "decoder"):
        whisper_fit(projector.decoder, path_or_id)
    else:
        _speech_fit(projector, path_or_id)


@torch.no_grad()
def init_projector(projector: Any) -> None:
    """Fill a projector as its config's `init_from` says, if it does, before it is partitioned: the same weights on every rank."""
    source = getattr(projector, "init_from", None)
    if source is None:
        return
    if hasattr(projector, "decoder"):
        init_from_whisper(projector)
        return
    fit = _speech_fit(projector, source)
    for name, param in _linear_parameters(projector).items():
        param.copy_(read_tensor(fit[name]))


def _linear_parameters(projector: Any) -> dict[str, torch.nn.Parameter]:
    linear = getattr(projector.linear, "base_layer", projector.linear)
    return {"weight": linear.weight, "bias": linear.bias}


def _speech_fit(projector: Any, path_or_id: str) -> dict[str, Stored]:
    tensors = checkpoint_tensors(local_folder(path_or_id))
    prefix = next((p for p in SPEECH_PREFIXES if f"{p}weight" in tensors and f"{p}bias" in tensors), None)
    if prefix is None:
        raise InputError(f"`{path_or_id}` is no speech LLM with a projector to start from (projector.init_from)")
    found = {name: tensors[prefix + name] for name in _linear_parameters(projector)}
    ours, theirs = tuple(_linear_parameters(projector)["weight"].shape), found["weight"].shape
    if ours != theirs:
        raise InputError(
            f"the projector of `{path_or_id}` maps {theirs[1]} to {theirs[0]}, the student's {ours[1]} to {ours[0]} (projector.init_from)"
        )
    return found
