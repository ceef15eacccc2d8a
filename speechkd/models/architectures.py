"""Builds models without weights from their configurations, also the parts of a speech LLM, and finds their tensors in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechkd.core.errors import InputError
from speechkd.core.tensors import Stored
from speechkd.models.encoder_families import ENCODERS, WAVEFORM
from speechkd.models.model_folder import checkpoint_tensors, read_config

ENCODER_PREFIXES = ("model.encoder.", "encoder.", "thinker.audio_tower.", "model.audio_tower.", "audio_tower.", "")
"""Where an encoder's tensors stand: in a full Whisper, in one without head, in a speech LLM, or saved alone."""
LLM_PARTS: Mapping[str, Mapping[str, str]] = {
    "qwen2_audio": {"language_model.": ""},
    "qwen2_5_omni": {"thinker.model.": "model.", "thinker.lm_head.": "lm_head."},
    "qwen2_5_omni_thinker": {"model.": "model.", "lm_head.": "lm_head."},
}
"""By model type of a speech LLM: where its language model's tensors stand, and what replaces that prefix in the language model alone"""
OMNI = ("qwen2_5_omni", "qwen2_5_omni_thinker")
OTHER_PARTS = ("model.audio_tower.", "model.visual.")
"""What a published thinker has beside its language model"""


def causal_lm_from(config: Any, dtype: torch.dtype) -> nn.Module:
    """A causal LM without weights; of a speech LLM, its language model. Raises InputError for another kind of model."""
    from transformers import AutoModelForCausalLM

    if config.model_type in LLM_PARTS:
        config = _text_config(config)
    try:
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError as error:
        raise InputError(f"not a causal language model: {str(error).splitlines()[0]}") from None
    return model


def _text_config(config: Any) -> Any:
    """Of a speech LLM, the configuration of its language model by itself.

    A Qwen2.5-Omni thinker that hears and reads counts positions one by one, the same in all three parts of its rotary embedding: then it
    is a Qwen2 (`tests/models/test_speech_llm.py` compares them).
    """
    text = config.get_text_config()
    if config.model_type not in OMNI:
        return text
    from transformers import Qwen2Config

    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act rms_norm_eps"
    kept = {name: getattr(text, name) for name in (*names.split(), "max_position_embeddings", "sliding_window", "use_sliding_window")}
    rope = {"rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"]}
    tied = _thinker(config).tie_word_embeddings
    return Qwen2Config(**kept, max_window_layers=text.max_window_layers, rope_parameters=rope, tie_word_embeddings=tied)


def _thinker(hf_config: Any) -> Any:
    """The part of an Omni model that hears and writes; any other model is all of it."""
    return getattr(hf_config, "thinker_config", hf_config)


def encoder_from(config: Any, dtype: torch.dtype) -> nn.Module:
    """A speech encoder without weights, by itself or out of a speech LLM. Raises InputError for another kind of model."""
    from transformers import AutoModel

    kind = config.model_type
    if kind not in ENCODERS:
        raise InputError(f"the encoder must be of model type {', '.join(ENCODERS)}, is `{kind}`")
    if kind == "whisper":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        config.dtype = dtype
        with _default_dtype(dtype):
            return WhisperEncoder(config)
    if kind in WAVEFORM:
        module: nn.Module = AutoModel.from_config(without_masks(config), dtype=dtype)
        return module
    audio = _thinker(config).audio_config
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

    family: Any = Qwen2AudioEncoder if kind == "qwen2_audio" else Qwen2_5OmniAudioEncoder
    made: nn.Module = family._from_config(audio, dtype=dtype)
    return made


def without_masks(config: Any) -> Any:
    """A waveform encoder's configuration without the random masking of its pretraining."""
    config.mask_time_prob = config.mask_feature_prob = 0.0
    return config


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def meta_causal_lm(path_or_id: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """`causal_lm_from` on the meta device (no memory), from configuration files alone, for dry runs."""
    config = read_config(path_or_id)
    with torch.device("meta"):
        module = causal_lm_from(config, dtype)
        module.tie_weights()  # type: ignore[operator]
    return module.eval()


def meta_encoder(path_or_id: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """`encoder_from` on the meta device (no memory), from configuration files alone, for dry runs."""
    config = read_config(path_or_id)
    with torch.device("meta"):
        return encoder_from(config, dtype).eval()


def language_model_tensors(folder: Path) -> dict[str, Stored]:
    """A language model's tensors by their names inside it: all of a folder's, or those of the LLM in a speech LLM."""
    tensors = checkpoint_tensors(folder)
    parts = LLM_PARTS.get(read_config(folder).model_type)
    if parts is None:
        return tensors
    found: dict[str, Stored] = {}
    for prefix, replacement in parts.items():
        theirs = {replacement + name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}
        found |= {name: stored for name, stored in theirs.items() if not name.startswith(OTHER_PARTS)}
    return found


def encoder_tensors(folder: Path) -> dict[str, Stored]:
    """An encoder's tensors by their names inside the encoder."""
    tensors = checkpoint_tensors(folder)
    prefix = next((p for p in ENCODER_PREFIXES if f"{p}conv1.weight" in tensors), "")
    return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}
