"""Quantised models: whether they can be loaded here is known from their configuration alone."""

from __future__ import annotations

from typing import Any

from speechkd.core.errors import InputError


def quantisation(hf_config: Any) -> str:
    """The method that a model was quantised by (`gptq`, `awq`); empty for weights as they were trained."""
    block = getattr(hf_config, "quantization_config", None)
    if block is None:
        return ""
    method = block.get("quant_method") if isinstance(block, dict) else getattr(block, "quant_method", None)
    return str(getattr(method, "value", method) or "an unnamed method")


def refuse_quantised(hf_config: Any, where: object) -> None:
    """Raises InputError for a model whose weights are to be partitioned or trained through: they must be plain tensors."""
    if method := quantisation(hf_config):
        way_out = "name the model that it was made from; a quantised one can only be a teacher (teachers.*.model, backend hf_local or vllm)"
        raise InputError(f"`{where}` is quantised ({method}), and its tensors cannot be partitioned: {way_out}")


def check_quantised(hf_config: Any, where: object) -> None:
    """Raises InputError where transformers cannot load a quantised model on this machine, say for want of a package."""
    method = quantisation(hf_config)
    if not method:
        return
    from transformers.quantizers import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(hf_config.quantization_config, pre_quantized=True).validate_environment(device_map=None)
    except Exception as error:  # each method has its own package and its own errors
        what = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"`{where}` is quantised ({method}) and cannot be loaded here: {what}; or name the model that it was made from"
        ) from None
