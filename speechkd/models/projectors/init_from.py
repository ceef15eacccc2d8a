"""Where a projector's weights start: as made, from a Whisper decoder (`whisper_init`), or from the projector of a speech LLM.

A `linear` projector that starts from the speech LLM whose encoder and language model the student has is that speech LLM: it hears from
the first step on (Qwen2-Audio, Qwen2.5-Omni; the student of arXiv 2509.18579).
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
"""Where a speech LLM's own projector stands"""


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
    for name, param in _own(projector).items():
        param.copy_(read_tensor(fit[name]))


def _own(projector: Any) -> dict[str, torch.nn.Parameter]:
    linear = getattr(projector.linear, "base_layer", projector.linear)
    return {"weight": linear.weight, "bias": linear.bias}


def _speech_fit(projector: Any, path_or_id: str) -> dict[str, Stored]:
    tensors = checkpoint_tensors(local_folder(path_or_id))
    prefix = next((p for p in SPEECH_PREFIXES if f"{p}weight" in tensors and f"{p}bias" in tensors), None)
    if prefix is None:
        raise InputError(f"`{path_or_id}` is no speech LLM with a projector to start from (projector.init_from)")
    found = {name: tensors[prefix + name] for name in _own(projector)}
    own, there = tuple(_own(projector)["weight"].shape), found["weight"].shape
    if own != there:
        raise InputError(
            f"the projector of `{path_or_id}` maps {there[1]} to {there[0]}, the student's {own[1]} to {own[0]} (projector.init_from)"
        )
    return found
