"""Start a Q-Former's decoder from a Whisper decoder's weights, where the shapes fit (DiVA, arXiv 2410.02678; arXiv 2603.07025)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from speechkd.core import dist
from speechkd.core.errors import InputError
from speechkd.core.log import say
from speechkd.core.tensors import Stored, read_tensor
from speechkd.models.model_folder import checkpoint_tensors, local_folder, read_config
from speechkd.models.projectors.cross_decoder import CrossDecoder

PREFIXES = ("model.decoder.", "decoder.")
"""Where a Whisper decoder's tensors stand: in the full model, in the model without head"""


class Fit(NamedTuple):
    """How much of a decoder a checkpoint can fill."""

    fitting: dict[str, Stored]
    total: int
    misfit: str | None
    """the first parameter that stays as it was made, and why"""


def whisper_fit(decoder: CrossDecoder, path_or_id: str) -> Fit:
    """Which of a `CrossDecoder`'s parameters a Whisper checkpoint fills, from headers alone.

    A shallower decoder takes the first layers, one with fewer queries the first positions. Raises InputError where nothing fits, or where
    the heads differ, which shapes do not show.
    """
    folder = local_folder(path_or_id)
    tensors = checkpoint_tensors(folder)
    prefix = next((p for p in PREFIXES if f"{p}layer_norm.weight" in tensors), None)
    if prefix is None:
        raise InputError(f"`{path_or_id}` has no Whisper decoder to start a projector from (projector.init_from)")
    heads = read_config(folder).decoder_attention_heads
    if heads != decoder.heads:
        raise InputError(f"the decoder of `{path_or_id}` has {heads} heads, the projector {decoder.heads} (projector.heads)")
    fitting: dict[str, Stored] = {}
    misfit = None
    params = _own(decoder)
    for name, param in params.items():
        stored = tensors.get(prefix + ("embed_positions.weight" if name == "embed_positions" else name))
        if stored is not None and _fits(name, tuple(param.shape), stored.shape):
            fitting[name] = stored
        elif misfit is None:
            misfit = f"`{name}` of shape {list(param.shape)}: {'none there' if stored is None else f'{list(stored.shape)} there'}"
    if not fitting:
        raise InputError(f"nothing of the decoder in `{path_or_id}` fits the projector; first {misfit} (projector.init_from)")
    return Fit(fitting, len(params), misfit)


def _own(decoder: CrossDecoder) -> dict[str, torch.nn.Parameter]:
    """The decoder's own parameters by their names in a Whisper decoder, LoRA or not."""
    return {
        name.replace(".base_layer.", "."): param
        for name, param in decoder.named_parameters()
        if name.rpartition(".")[2] not in ("lora_A", "lora_B")
    }


def _fits(name: str, own: tuple[int, ...], there: tuple[int, ...]) -> bool:
    if name == "embed_positions":
        return own[1:] == there[1:] and own[0] <= there[0]
    return own == there


@torch.no_grad()
def init_from_whisper(projector: Any) -> Fit | None:
    """Fill a projector's decoder as its config's `init_from` says, before it is partitioned; None where it says nothing.

    Gives the same weights on every rank. Raises InputError as `whisper_fit`, DataError for torn files.
    """
    path_or_id = getattr(projector, "init_from", None)
    if path_or_id is None:
        return None
    fit = whisper_fit(projector.decoder, path_or_id)
    params = _own(projector.decoder)
    for name, stored in fit.fitting.items():
        params[name].copy_(read_tensor(stored)[: params[name].shape[0]])
    if dist.rank() == 0:
        rest = f"; the rest as it was made, first {fit.misfit}" if fit.misfit else ""
        say(f"projector: {len(fit.fitting)} of {fit.total} decoder tensors start from {path_or_id}{rest}")
    return fit
