"""Loads whole pretrained models from local folders or the hub: safetensors only, no remote code, no randomly initialised weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechkd.core.errors import DataError, InputError
from speechkd.models.architectures import LLM_PARTS, causal_lm_from, encoder_from, encoder_tensors, language_model_tensors, without_masks
from speechkd.models.encoder_families import WAVEFORM
from speechkd.models.fill import fill, misfit
from speechkd.models.model_folder import checkpoint_tensors, local_folder, read_config
from speechkd.models.quantised import check_quantised


def load_causal_lm(path_or_id: str, dtype: torch.dtype, device_map: str | None = None) -> nn.Module:
    """A whole causal language model in eval mode, by transformers' own loader; of a speech LLM its language model alone.

    `device_map` ("auto") spreads it over devices by accelerate. Raises InputError for a missing folder, id, file or package, for a speech
    LLM with a `device_map`; DataError for tensors that do not match the architecture.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    folder = local_folder(path_or_id)
    config = read_config(folder)
    if config.model_type in LLM_PARTS:
        if device_map is not None:
            raise InputError(f"`device_map` cannot spread the language model of a speech LLM (`{config.model_type}`, {folder})")
        with no_init_weights():
            part = causal_lm_from(config, dtype)
            part.tie_weights()  # type: ignore[operator]
        fill(part, language_model_tensors(folder), folder)
        return part.eval()
    return _whole(AutoModelForCausalLM, folder, dtype, device_map)


def load_speech_llm(path_or_id: str, dtype: torch.dtype, device_map: str | None = None) -> nn.Module:
    """A whole speech LLM (Qwen2-Audio) in eval mode: audio tower, projector and language model, by transformers' own loader.

    Raises as `load_causal_lm`, and InputError for a folder of another kind of model.
    """
    from transformers import AutoModelForSeq2SeqLM

    folder = local_folder(path_or_id)
    config = read_config(folder)
    if config.model_type != "qwen2_audio":
        raise InputError(f"a model that hears must be of type qwen2_audio, is `{config.model_type}` ({folder})")
    return _whole(AutoModelForSeq2SeqLM, folder, dtype, device_map)


def _whole(auto: Any, folder: Path, dtype: torch.dtype, device_map: str | None) -> nn.Module:
    """A model by transformers' loader: no pickles, no remote code, no randomly initialised weights."""
    if device_map is not None and find_spec("accelerate") is None:
        raise InputError("`device_map` spreads a model by the package `accelerate`, which is not installed")
    checkpoint_tensors(folder)  # refuse missing or torn files in our own words, and pickles altogether
    check_quantised(read_config(folder), folder)
    with quietly():
        loaded: Any = auto.from_pretrained(
            str(folder), dtype=dtype, device_map=device_map, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    whole: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise DataError(misfit(folder, missing, []))
    return whole.eval()


def load_encoder(path_or_id: str, dtype: torch.dtype) -> nn.Module:
    """The speech encoder of a checkpoint (a whole model, one without head, the encoder alone), in eval mode; decoders are never read.

    Raises as `load_causal_lm`.
    """
    from transformers.initialization import no_init_weights

    folder = local_folder(path_or_id)
    config = read_config(folder)
    if config.model_type in WAVEFORM:
        return _load_waveform_encoder(folder, config, dtype)
    with no_init_weights():
        module = encoder_from(config, dtype)
    fill(module, encoder_tensors(folder), folder)
    return module.eval()


def _load_waveform_encoder(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """By transformers' own loader, which knows both spellings of their weight norm; tensors of a task head are left out."""
    from transformers import AutoModel

    checkpoint_tensors(folder)  # refuse missing or torn files in our own words, and pickles altogether
    with quietly():
        loaded: Any = AutoModel.from_pretrained(
            str(folder), config=without_masks(config), dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    module: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise DataError(misfit(folder, missing, []))
    return module.eval()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hides transformers' progress bars inside the block: they are noise in log files."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
