"""Builds DeepSpeed's config: memory and communication come from a file in ds_configs/, everything else from the recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.files import no_such_file

Precision = Literal["fp32", "bf16"]

ALLOWED = ("zero_optimization", "activation_checkpointing", "aio", "communication_data_type", "prescale_gradients", "comms_logger")
"""Sections about memory placement and communication, which a file in ds_configs/ may contain."""
AUTO = "auto"
"""In a recipe, in place of a file: the file of `FILES` that fits is taken when the run starts"""
FILES = ("ds_configs/zero2.json", "ds_configs/zero3_hpz.json", "ds_configs/zero3.json", "ds_configs/zero3_offload.json")
"""What `auto` chooses from, in order of communication"""
OF_THE_RECIPE = {
    "train_batch_size": "plan.micro_batches",
    "train_micro_batch_size_per_gpu": "plan.micro_batches",
    "gradient_accumulation_steps": "plan.micro_batches",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim",
    "fp16": "student.dtype",
    "bf16": "student.dtype",
    "amp": "student.dtype",
    "torch_autocast": "student.dtype",
    "data_types": "student.dtype",
}


class OptimValues(Protocol):
    """The optimizer settings that the engine needs; a recipe's optimizer config has these fields."""

    @property
    def lr(self) -> float: ...

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def eps(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


def read_ds_config(path: Path) -> dict[str, Any]:
    """Read a file of ds_configs/. Raises InputError if it is missing, not JSON, or has keys that belong in the recipe.

    `auto`, before a run has chosen, is ZeRO-3: what holds for that holds for every choice.
    """
    if str(path) == AUTO:
        return [read_ds_config(Path(file)) for file in FILES][2]
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(no_such_file(path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"not readable as JSON: {error} ({path})") from None
    if not isinstance(data, dict):
        raise InputError(f"must be a JSON object, is {type(data).__name__} ({path})")
    for key in data:
        if key in OF_THE_RECIPE:
            raise InputError(f"`{key}` belongs in the recipe (`{OF_THE_RECIPE[key]}`), not in a DeepSpeed file ({path})")
        if key not in ALLOWED:
            raise InputError(unknown_name("key", key, ALLOWED, str(path)))
    stage = data.get("zero_optimization", {}).get("stage") if isinstance(data.get("zero_optimization"), dict) else None
    if stage not in (2, 3):
        raise InputError(f"`zero_optimization.stage` must be 2 or 3, is {stage!r} ({path})")
    if dotted := _auto(data, ""):
        raise InputError(f'`{dotted}` is "auto", which nobody would fill in; write a value ({path})')
    return data


def _auto(node: Any, where: str) -> str | None:
    if node == "auto":
        return where
    pairs = node.items() if isinstance(node, dict) else ()
    return next((found for key, value in pairs if (found := _auto(value, f"{where}.{key}".lstrip(".")))), None)


def stage(ds_config: Mapping[str, Any]) -> int:
    """ZeRO stage of a configuration that `read_ds_config` returned."""
    return int(ds_config["zero_optimization"]["stage"])


def with_linear(ds_config: Mapping[str, Any], recomputes: bool) -> dict[str, Any]:
    """The configuration with torch's own `F.linear` where blocks are recomputed, unless the file has chosen.

    DeepSpeed's replacement, process-wide under ZeRO-3, is there so that autograd does not hold gathered weights until the backward pass.
    A recomputed block saves nothing in its forward pass, so that it would cost time only.
    """
    zero = {**ds_config["zero_optimization"]}
    if recomputes and zero["stage"] == 3:
        zero.setdefault("memory_efficient_linear", False)
    return {**ds_config, "zero_optimization": zero}


def full_ds_config(ds_config: Mapping[str, Any], optim: OptimValues, accumulate: int, clip: float, precision: Precision) -> dict[str, Any]:
    """The complete DeepSpeed config: `ds_config` (from a file) plus the recipe's settings.

    `accumulate`: micro-batches of one global step on each rank; `clip`: maximal gradient norm, 0 for none; always written because
    DeepSpeed clips at 1.0 if the key is missing. Gradients are summed in float32 whatever the precision of the weights: over
    micro-batches, and over ranks unless the file says otherwise.
    """
    if accumulate < 1:
        raise InputError(f"a rank must have at least one micro-batch a step, given {accumulate}")
    return {
        "communication_data_type": "fp32",  # else bf16 with bf16 weights: 64 ranks would add with three digits
        **ds_config,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": float(clip),
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "bf16": {"enabled": precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optim.lr,
                "betas": list(optim.betas),
                "eps": optim.eps,
                "weight_decay": optim.weight_decay,
                "torch_adam": True,  # DeepSpeed's CPU Adam would compile C++ on the first run
            },
        },
    }
