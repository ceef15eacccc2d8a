"""Loads pretrained models, whole or partitioned by ZeRO-3. Of a partitioned model, each rank reads only its own slice.

`from_pretrained` under ZeRO-3 does not save memory. Measured for a 1 GB model on two ranks, relative to an ordinary load: 1.6 on rank 0 and
1.3 on rank 1. Here the module is created partitioned and filled by byte range: 0.57 on both.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechkd.core.errors import InputError
from speechkd.core.tensors import Stored
from speechkd.models import pretrained
from speechkd.models.architectures import causal_lm_from, encoder_from, encoder_tensors, language_model_tensors
from speechkd.models.encoder_families import WAVEFORM
from speechkd.models.fill import fill, fill_whole
from speechkd.models.model_folder import local_folder, read_config
from speechkd.models.quantised import refuse_quantised


def load_causal_lm(path_or_id: str, dtype: torch.dtype, partitioned: bool = False, ds_config: Mapping[str, Any] | None = None) -> nn.Module:
    """A causal language model in eval mode with its pretrained weights; `dtype` float32 or bfloat16.

    `partitioned`: every rank keeps 1/world of each parameter (needs `init_distributed`; every rank must call it; `ds_config` is what
    `read_ds_config` returned, for offload and secondary partitions). Otherwise exactly transformers' own load.
    Raises InputError for a missing folder, id or file, DataError for tensors that do not match the architecture.
    """
    if not partitioned:
        return pretrained.load_causal_lm(path_or_id, dtype)
    from transformers.initialization import no_init_weights

    from speechkd.engine.zero import full_shape
    from speechkd.engine.zero import partitioned as zero_init

    folder = local_folder(path_or_id)
    config = read_config(folder)
    refuse_quantised(config, folder)
    with no_init_weights(), zero_init(ds_config, dtype, to_be_filled=True):
        module = causal_lm_from(config, dtype)
        module.tie_weights()  # type: ignore[operator]
    gc.collect()  # free the head weight that tying replaced: it is in a reference cycle
    _refuse_mixed_precision(module, dtype, folder)
    fill(module, language_model_tensors(folder), folder, fill_parameter, full_shape)
    _load_generation_config(module, folder)
    return module.eval()


def load_encoder(path_or_id: str, dtype: torch.dtype, partitioned: bool = False, ds_config: Mapping[str, Any] | None = None) -> nn.Module:
    """The speech encoder of a checkpoint (full model, headless model or encoder alone), in eval mode; decoders are never read.

    Arguments and errors as for `load_causal_lm`. Waveform encoders (0.1 to 1 B parameters) load whole on each rank and are partitioned when
    training starts, because their weight norm cannot be created partitioned.
    """
    if not partitioned or read_config(path_or_id).model_type in WAVEFORM:
        return pretrained.load_encoder(path_or_id, dtype)
    from transformers.initialization import no_init_weights

    from speechkd.engine.zero import full_shape
    from speechkd.engine.zero import partitioned as zero_init

    folder = local_folder(path_or_id)
    with no_init_weights(), zero_init(ds_config, dtype, to_be_filled=True):
        module = encoder_from(read_config(folder), dtype)
    fill(module, encoder_tensors(folder), folder, fill_parameter, full_shape)
    return module.eval()


def _refuse_mixed_precision(module: nn.Module, dtype: torch.dtype, folder: Path) -> None:
    """Raises InputError for architectures that keep modules in float32: partitioned creation would silently round them."""
    pinned = sorted(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if pinned and dtype != torch.float32:
        raise InputError(f"modules {', '.join(pinned)} must stay in float32: load this model with precision fp32 ({folder})")


def _load_generation_config(module: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(str(folder))


def fill_parameter(param: nn.Parameter, stored: Stored) -> None:
    """Read `stored` into `param`: whole, or only this rank's partition if `param` is partitioned.

    A partition that `fill_partition` refuses is gathered and filled by rank 0: a collective, so every rank must make this call.
    """
    from speechkd.engine.zero import fill_partition, gathered, is_partitioned

    with torch.no_grad():
        if not is_partitioned(param):
            fill_whole(param, stored)
        elif not fill_partition(param, stored):
            with gathered([param], modifier_rank=0):
                if torch.distributed.get_rank() == 0:
                    fill_whole(param, stored)
