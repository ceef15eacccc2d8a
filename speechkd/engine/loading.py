"""Pretrained models from local folders or the hub, partitioned while they load: no rank ever holds a whole model.

`from_pretrained` under ZeRO-3 needs more memory than an ordinary load, not less (measured, 1 GB on two ranks: 1.6 times on rank 0, 1.3 on
rank 1). Here the module is created partitioned and every rank reads only its own slice of every tensor, by byte range (0.57 on both).
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import read_json, sha256_bytes
from speechkd.engine.tensors import Stored, read_header, read_into, read_tensor

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ENCODER_PREFIXES = ("model.encoder.", "encoder.", "")
"""Where a Whisper encoder's tensors stand: in the full model, in the model without head, or saved alone."""


def resolve(path_or_id: str, weights: bool = True) -> Path:
    """The folder of a local model, or of a hub model after downloading what is needed (`weights=False`: configuration and tokenizer only).

    Raises InputError if there is no such folder, or if the hub does not know or cannot be asked for the id.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path_or_id) or ".." in path_or_id:
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


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise InputError(f"no `config.json` in model folder `{folder}`")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"not a model configuration that transformers knows: {reason} ({folder / 'config.json'})") from None


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _causal_lm(config: Any, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError as error:
        raise InputError(f"not a causal language model: {str(error).splitlines()[0]}") from None
    return model


def _whisper_encoder(config: Any, dtype: torch.dtype) -> nn.Module:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if config.model_type != "whisper":
        raise InputError(f"the encoder must be of model type `whisper`, is `{config.model_type}`")
    config.dtype = dtype
    with _default_dtype(dtype):
        return WhisperEncoder(config)


def load_causal_lm(path_or_id: str, dtype: torch.dtype, partitioned: bool = False, memory: Mapping[str, Any] | None = None) -> nn.Module:
    """A causal language model in eval mode with its pretrained weights; `dtype` float32 or bfloat16.

    `partitioned`: every rank keeps 1/world of each parameter (needs `init_distributed`; every rank must call it; `memory` is what
    `read_ds_config` returned, for offload and secondary partitions). Otherwise exactly transformers' own load.
    Raises InputError for a missing folder, id or file, DataError for tensors that do not match the architecture.
    """
    folder = resolve(path_or_id)
    config = _config(folder)
    if not partitioned:
        from transformers import AutoModelForCausalLM

        checkpoint_tensors(folder)  # refuse missing or torn files in our own words, and pickles altogether
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        whole: nn.Module = loaded[0]
        if missing := sorted(loaded[1]["missing_keys"]):
            raise DataError(_mismatch(folder, missing, []))
        return whole.eval()
    from transformers.initialization import no_init_weights

    from speechkd.engine.zero import partitioned as zero_init

    with no_init_weights(), zero_init(memory, dtype, to_be_filled=True):
        module = _causal_lm(config, dtype)
        module.tie_weights()  # type: ignore[operator]
    gc.collect()  # a head that was replaced by a tied one sits in a reference cycle
    _refuse_mixed_precision(module, dtype, folder)
    fill(module, checkpoint_tensors(folder), folder)
    _generation_config(module, folder)
    return module.eval()


def load_whisper_encoder(
    path_or_id: str, dtype: torch.dtype, partitioned: bool = False, memory: Mapping[str, Any] | None = None
) -> nn.Module:
    """The encoder of a Whisper checkpoint (full model, model without head, or encoder alone), in eval mode; the decoder is never read.

    Arguments and errors as for `load_causal_lm`.
    """
    from transformers.initialization import no_init_weights

    folder = resolve(path_or_id)
    config, tensors = _config(folder), checkpoint_tensors(folder)
    if partitioned:
        from speechkd.engine.zero import partitioned as zero_init

        with no_init_weights(), zero_init(memory, dtype, to_be_filled=True):
            module = _whisper_encoder(config, dtype)
    else:
        with no_init_weights():
            module = _whisper_encoder(config, dtype)
    prefix = next((p for p in ENCODER_PREFIXES if f"{p}conv1.weight" in tensors), "")
    own = {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}
    fill(module, own, folder)
    return module.eval()


def meta_causal_lm(path_or_id: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The same module without memory, from configuration files alone, for dry runs."""
    config = _config(resolve(path_or_id, weights=False))
    with torch.device("meta"):
        module = _causal_lm(config, dtype)
        module.tie_weights()  # type: ignore[operator]
    return module.eval()


def meta_whisper_encoder(path_or_id: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The encoder without memory, from configuration files alone, for dry runs."""
    config = _config(resolve(path_or_id, weights=False))
    with torch.device("meta"):
        return _whisper_encoder(config, dtype).eval()


def _refuse_mixed_precision(module: nn.Module, dtype: torch.dtype, folder: Path) -> None:
    """Some architectures pin modules to float32; created partitioned they would silently be rounded."""
    pinned = sorted(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if pinned and dtype != torch.float32:
        raise InputError(f"modules {', '.join(pinned)} must stay in float32: load this model with precision fp32 ({folder})")


def _generation_config(module: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(str(folder))


def fill(module: nn.Module, tensors: Mapping[str, Stored], folder: Path) -> None:
    """Fill every parameter and persistent buffer of `module` with the tensor of its name; tied ones may stand under any name.

    Of a partitioned parameter each rank reads its own slice. Raises DataError naming what is missing, unexpected or of another shape:
    nothing is left as it was created. Collective where a parameter can only be filled gathered (secondary partitions, offload to NVMe).
    """
    from speechkd.engine.zero import full_shape

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
        _same_shape(names[0], full_shape(param), stored)
        fill_parameter(param, stored)
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


def fill_parameter(param: nn.Parameter, stored: Stored) -> None:
    """Read `stored` into `param`: whole, or this rank's own partition. Collective only where a partition cannot be filled alone."""
    from speechkd.engine.zero import fill_partition, gathered, is_partitioned

    with torch.no_grad():
        if not is_partitioned(param):
            whole = param.data if param.data.is_contiguous() else param.data.contiguous()
            read_into(whole.view(-1), stored)
            param.data.copy_(whole)
        elif not fill_partition(param, stored):
            with gathered([param], modifier_rank=0):
                if torch.distributed.get_rank() == 0:
                    read_into(param.data.view(-1), stored)
