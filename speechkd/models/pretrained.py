"""Pretrained models from local folders or the hub: safetensors only, nothing executed, nothing left as it was created."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import read_json, sha256_bytes
from speechkd.core.tensors import Stored, read_header, read_into, read_tensor
from speechkd.models.encoder_families import ENCODERS, WAVEFORM

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BLOCK, BLOCKS = 1 << 16, 64
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ENCODER_PREFIXES = ("model.encoder.", "encoder.", "thinker.audio_tower.", "model.audio_tower.", "audio_tower.", "")
"""Where an encoder's tensors stand: in a full Whisper, in one without head, in a speech LLM, or saved alone."""
LLM_PARTS: Mapping[str, Mapping[str, str]] = {
    "qwen2_audio": {"language_model.": ""},
    "qwen2_5_omni": {"thinker.model.": "model.", "thinker.lm_head.": "lm_head."},
    "qwen2_5_omni_thinker": {"model.": "model.", "lm_head.": "lm_head."},
}
"""By model type of a speech LLM: where its language model's tensors stand, and what stands there in the language model alone"""
OMNI = ("qwen2_5_omni", "qwen2_5_omni_thinker")
OTHER_PARTS = ("model.audio_tower.", "model.visual.")
"""What a published thinker has beside its language model"""


def resolve(path_or_id: str, weights: bool = True) -> Path:
    """The folder of a local model, or of a hub model after downloading what is needed (`weights=False`: configuration and tokenizer only).

    Raises InputError if there is no such folder, or if the hub does not know or cannot be asked for the id.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if not (HUB_ID.fullmatch(path_or_id) or re.fullmatch(r"[A-Za-z0-9][\w.-]*", path_or_id)) or ".." in path_or_id:
        raise InputError(f"no such model folder `{path_or_id}`")
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        found = Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=SMALL_FILES))
        if weights:
            names = sorted({p.name for p in _weight_names(found)})
            found = Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=[*SMALL_FILES, *names]))
        return found
    except (OSError, HFValidationError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"`{path_or_id}` is neither a local folder nor a hub model that can be fetched now: {reason}") from None


def _weight_names(folder: Path) -> list[Path]:
    """Paths of the weight files that the index names, or of the single one (which may not be there)."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    try:
        names = set(read_json(folder / INDEX)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a weight index: {error!r} ({folder / INDEX})") from None
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise DataError(f"the weight index names `{name}`, which is not a plain file name ({folder / INDEX})")
    return [folder / name for name in sorted(names)]


def checkpoint_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a model folder, from headers alone. Raises InputError if a file is missing, DataError if one is torn."""
    files = _weight_names(folder)
    for file in files:
        if not file.is_file():
            raise InputError(f"no `{file.name}` in model folder `{folder}` (weights are read as safetensors only)")
    return {name: stored for file in files for name, stored in read_header(file).items()}


def read_config(folder: Path) -> Any:
    """The folder's transformers configuration. Raises InputError where there is none that transformers knows."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise InputError(f"no `config.json` in model folder `{folder}`")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"not a model configuration that transformers knows: {reason} ({folder / 'config.json'})") from None


def fingerprint(path_or_id: str) -> str:
    """What a frozen model is, without reading all of it: configuration, and of each weight file its size and 65 blocks spread over it."""
    folder = resolve(path_or_id)
    checkpoint_tensors(folder)  # says in our own words what is missing
    if not (folder / "config.json").is_file():
        raise InputError(f"no `config.json` in model folder `{folder}`")
    state = hashlib.sha256((folder / "config.json").read_bytes())
    for path in _weight_names(folder):
        size = path.stat().st_size
        state.update(f"{path.name}:{size}".encode())
        with path.open("rb") as stream:
            for index in range(BLOCKS + 1):
                stream.seek(max(0, size - BLOCK) * index // BLOCKS, os.SEEK_SET)
                state.update(stream.read(BLOCK))
    return state.hexdigest()


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def causal_lm_from(config: Any, dtype: torch.dtype) -> nn.Module:
    """An empty causal LM of a configuration, of a speech LLM its language model. Raises InputError for another kind of model."""
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
    tied = getattr(config, "thinker_config", config).tie_word_embeddings
    return Qwen2Config(**kept, max_window_layers=text.max_window_layers, rope_parameters=rope, tie_word_embeddings=tied)


def encoder_from(config: Any, dtype: torch.dtype) -> nn.Module:
    """An empty speech encoder of a configuration, or of the speech LLM's that it is of. Raises InputError for another kind of model."""
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
        module: nn.Module = AutoModel.from_config(_listening(config), dtype=dtype)
        return module
    audio = getattr(config, "thinker_config", config).audio_config
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

    family: Any = Qwen2AudioEncoder if kind == "qwen2_audio" else Qwen2_5OmniAudioEncoder
    made: nn.Module = family._from_config(audio, dtype=dtype)
    return made


def _listening(config: Any) -> Any:
    """A waveform encoder's configuration without what masks parts of its input in its own training."""
    config.mask_time_prob = config.mask_feature_prob = 0.0
    return config


def load_causal_lm(path_or_id: str, dtype: torch.dtype, device_map: str | None = None) -> nn.Module:
    """A whole causal language model in eval mode, by transformers' own loader; of a speech LLM its language model alone.

    `device_map` ("auto") spreads it over devices by accelerate. Raises InputError for a missing folder, id, file or package, for a speech
    LLM with a `device_map`; DataError for tensors that do not match the architecture.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    folder = resolve(path_or_id)
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

    folder = resolve(path_or_id)
    config = read_config(folder)
    if config.model_type != "qwen2_audio":
        raise InputError(f"a model that hears must be of type qwen2_audio, is `{config.model_type}` ({folder})")
    return _whole(AutoModelForSeq2SeqLM, folder, dtype, device_map)


def _whole(auto: Any, folder: Path, dtype: torch.dtype, device_map: str | None) -> nn.Module:
    """A model by transformers' loader: nothing unpickled, nothing executed, nothing left random."""
    if device_map is not None and find_spec("accelerate") is None:
        raise InputError("`device_map` spreads a model by the package `accelerate`, which is not installed")
    checkpoint_tensors(folder)  # refuse missing or torn files in our own words, and pickles altogether
    with quietly():
        loaded: Any = auto.from_pretrained(
            str(folder), dtype=dtype, device_map=device_map, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    whole: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise DataError(_mismatch(folder, missing, []))
    return whole.eval()


def load_encoder(path_or_id: str, dtype: torch.dtype) -> nn.Module:
    """The speech encoder of a checkpoint (a whole model, one without head, the encoder alone), in eval mode; decoders are never read.

    Raises as `load_causal_lm`.
    """
    from transformers.initialization import no_init_weights

    folder = resolve(path_or_id)
    config = read_config(folder)
    if config.model_type in WAVEFORM:
        return _load_waveform_encoder(folder, config, dtype)
    with no_init_weights():
        module = encoder_from(config, dtype)
    fill(module, encoder_tensors(folder), folder)
    return module.eval()


def _load_waveform_encoder(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """By transformers' own loader, which knows both spellings of their weight norm; what stands in a head beside them is left out."""
    from transformers import AutoModel

    checkpoint_tensors(folder)  # refuse missing or torn files in our own words, and pickles altogether
    with quietly():
        loaded: Any = AutoModel.from_pretrained(
            str(folder), config=_listening(config), dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    module: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise DataError(_mismatch(folder, missing, []))
    return module.eval()


def encoder_tensors(folder: Path) -> dict[str, Stored]:
    """An encoder's tensors by their names inside the encoder."""
    tensors = checkpoint_tensors(folder)
    prefix = next((p for p in ENCODER_PREFIXES if f"{p}conv1.weight" in tensors), "")
    return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}


def language_model_tensors(folder: Path) -> dict[str, Stored]:
    """A language model's tensors by their names inside it: all of a folder's, or those of the LLM in a speech LLM."""
    tensors = checkpoint_tensors(folder)
    parts = LLM_PARTS.get(read_config(folder).model_type)
    if parts is None:
        return tensors
    found: dict[str, Stored] = {}
    for prefix, own in parts.items():
        theirs = {own + name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}
        found |= {name: stored for name, stored in theirs.items() if not name.startswith(OTHER_PARTS)}
    return found


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No progress bar of transformers' own: a load of seconds is no news, and in log files a bar is noise."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def meta_causal_lm(path_or_id: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The same module without memory, from configuration files alone, for dry runs."""
    config = read_config(resolve(path_or_id, weights=False))
    with torch.device("meta"):
        module = causal_lm_from(config, dtype)
        module.tie_weights()  # type: ignore[operator]
    return module.eval()


def config_home(name: str, root: str | None) -> str:
    """Where a model's configuration is read: `root`/name if it is no folder itself and stands there, else its own name."""
    local = Path(root, name) if root else None
    return str(local) if local is not None and not Path(name).is_dir() and local.is_dir() else name


def meta_encoder(path_or_id: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The encoder without memory, from configuration files alone, for dry runs."""
    config = read_config(resolve(path_or_id, weights=False))
    with torch.device("meta"):
        return encoder_from(config, dtype).eval()


def fill_whole(param: nn.Parameter, stored: Stored) -> None:
    """Read `stored` into a parameter that this process holds whole."""
    whole = param.data if param.data.is_contiguous() else param.data.contiguous()
    read_into(whole.view(-1), stored)
    param.data.copy_(whole)


def own_shape(param: nn.Parameter) -> torch.Size:
    """The shape of a parameter that this process holds whole."""
    return param.shape


def fill(
    module: nn.Module,
    tensors: Mapping[str, Stored],
    folder: Path,
    put: Callable[[nn.Parameter, Stored], None] = fill_whole,
    shape_of: Callable[[nn.Parameter], torch.Size] = own_shape,
) -> None:
    """Fill every parameter (by `put`) and persistent buffer of `module` with the tensor of its name; tied ones may stand under any name.

    Raises DataError naming what is missing, unexpected or of another shape: nothing is left as it was created.
    """
    params: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, param in module.named_parameters(remove_duplicate=False):
        params.setdefault(id(param), (param, []))[1].append(name)
    persistent = set(module.state_dict(keep_vars=True))  # names only: no tensor is copied
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
    missing = [names[0] for _, names in params.values() if not any(n in tensors for n in names)] + [n for n in buffers if n not in tensors]
    known = {n for _, names in params.values() for n in names} | set(buffers)
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    unexpected = [n for n in tensors if n not in known and not any(re.search(p, n) for p in ignored)]
    if missing or unexpected:
        raise DataError(_mismatch(folder, missing, unexpected))
    for param, names in params.values():
        stored = _only(tensors, names, folder)
        _same_shape(names[0], shape_of(param), stored)
        put(param, stored)
    with torch.no_grad():
        for name, buffer in buffers.items():
            _same_shape(name, buffer.shape, tensors[name])
            buffer.copy_(read_tensor(tensors[name]))


def _same_shape(name: str, shape: torch.Size, stored: Stored) -> None:
    if tuple(shape) != stored.shape:
        raise DataError(f"`{name}` has shape {list(shape)} in the model and {list(stored.shape)} in the file ({stored.path})")


def _mismatch(folder: Path, missing: list[str], unexpected: list[str]) -> str:
    found = (("missing", missing), ("unexpected", unexpected))
    parts = [f"{len(names)} {word} tensors, first `{names[0]}`" for word, names in found if names]
    return f"weights do not fit the architecture in config.json: {'; '.join(parts)} ({folder})"


def _only(tensors: Mapping[str, Stored], names: list[str], folder: Path) -> Stored:
    """The one tensor of a parameter that may be tied under several names; two different ones are refused, because one would be lost."""
    found = [tensors[name] for name in names if name in tensors]
    for other in found[1:]:
        if other.shape != found[0].shape or _probe(other) != _probe(found[0]):
            raise DataError(f"`{found[0].name}` and `{other.name}` are tied in config.json but differ in the file ({folder})")
    return found[0]


def _probe(stored: Stored) -> str:
    head = torch.empty(min(1024, stored.numel), dtype=stored.dtype)
    read_into(head, stored)
    return sha256_bytes(bytes(head.view(torch.uint8).numpy()))
