"""LoRA (arXiv 2106.09685) on chosen linear layers, at all positions or at audio positions only (PLoRA of BLSP-Emo, arXiv 2406.03872).

    y = W x + mask (alpha / r) B A x
A mask over positions on B's output does all of it. All positions: LoRA. Audio positions: PLoRA, with which the LLM reads text exactly as
before. No position: the model as it was loaded, bit for bit, so that the student's own LLM can be its teacher without a second copy.

Files are PEFT's (`adapter_model.safetensors`, `adapter_config.json`), the layers are ours: PEFT has no position mask, flips
`requires_grad` when an adapter is switched off, and keeps A and B as modules of their own: one more gather a layer under ZeRO-3.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from speechkd.core.config import Config
from speechkd.core.errors import InputError, unknown_name

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."


class LoraConfig(Config):
    """`targets`: names of linear layers (`q_proj`, `self_attn.q_proj`, `projector.linear`), each of which must match at least one."""

    r: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = Field(min_length=1)
    scope: Literal["all", "audio"] = "all"
    """`audio`: only at audio positions (PLoRA). Layers of the projector see nothing but audio and always have it; their own weights train
    too, since no pretrained model has them"""


class Switch:
    """Where the LoRA layers of one language model are active in the pass that runs now."""

    def __init__(self) -> None:
        self.off = False
        self.positions_BS: Tensor | None = None
        """boolean; None: everywhere"""

    @contextlib.contextmanager
    def set(self, off: bool = False, positions_BS: Tensor | None = None) -> Iterator[None]:
        """For the passes inside the block: everywhere, at `positions_BS` only, or (`off`) nowhere."""
        before = self.off, self.positions_BS
        self.off, self.positions_BS = off, positions_BS
        try:
            yield
        finally:
            self.off, self.positions_BS = before


class LoraLinear(nn.Module):
    """A linear layer with a trained low-rank part. A and B are this module's own, so that ZeRO-3 gathers them together, once."""

    def __init__(self, base_layer: nn.Linear, config: LoraConfig, switch: Switch) -> None:
        super().__init__()
        self.base_layer, self.switch = base_layer, switch
        self.scale = config.alpha / config.r
        self.dropout = nn.Dropout(config.dropout)
        self.lora_A = nn.Parameter(torch.empty(config.r, base_layer.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base_layer.out_features, config.r))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # PEFT's start: B = 0, so that step 0 is the model as loaded

    @property
    def weight(self) -> Tensor:
        """The layer's own weight, for code that asks a linear layer for its dtype or device."""
        weight: Tensor = self.base_layer.weight
        return weight

    def train(self, mode: bool = True) -> LoraLinear:
        """The base stays as it is; only the dropout in front of A knows training."""
        self.dropout.train(mode)
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; [B, S, in] where positions are masked."""
        out: Tensor = self.base_layer(x)
        if self.switch.off:
            return out
        delta = linear(linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A), self.lora_B) * self.scale
        where_BS = self.switch.positions_BS
        if where_BS is not None:
            # While text is generated, one new position a pass: not audio. Filled, not multiplied: an infinite delta must not leak.
            keep_BS = where_BS if where_BS.shape == x.shape[:2] else where_BS.new_zeros(x.shape[:2])
            delta = delta.masked_fill(~keep_BS.unsqueeze(-1), 0.0)
        return out + delta.to(out.dtype)


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}


def matching(targets: Iterable[str], names: Iterable[str], where: str = "student.lora.targets") -> list[str]:
    """Those of `names` that end in one of the targets, dot by dot. Raises InputError for a target that matches nothing, nearest named."""
    names = list(names)
    found: dict[str, None] = {}
    for target in targets:
        hits = [name for name in names if f".{name}".endswith(f".{target}")]
        if not hits:
            short = sorted({name.rpartition(".")[2] for name in names})
            raise InputError(unknown_name("LoRA target", target, short, where))
        found |= dict.fromkeys(hits)
    return [name for name in names if name in found]


def add_lora(module: nn.Module, names: Iterable[str], config: LoraConfig, switch: Switch) -> None:
    """Put LoRA on the linear layers called `names`, whose own weights go on to train or not as before."""
    for name in names:
        home, _, last = name.rpartition(".")
        parent = module.get_submodule(home)
        base: Any = parent.get_submodule(last)
        setattr(parent, last, LoraLinear(base, config, switch))


def lora_layers(module: nn.Module) -> dict[str, LoraLinear]:
    """All LoRA layers by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLinear)}


def peft_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Of trained tensors (by our names), the LoRA of the module that stands at `prefix`, by PEFT's names."""
    return {
        f"{PEFT_PREFIX}{name.removeprefix(prefix)}.weight": tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and name.endswith((".lora_A", ".lora_B"))
    }


def from_peft_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The inverse of `peft_names`: tensors by our names."""
    return {prefix + name.removeprefix(PEFT_PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}


def peft_config(config: LoraConfig, names: Iterable[str], base: str) -> dict[str, Any]:
    """`adapter_config.json` as PEFT reads it. PEFT has no audio scope: an adapter with it is loaded by PEFT for all positions."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(names),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Fold every LoRA layer of a whole (not partitioned) module into its base: W + (alpha / r) B A, summed in float32."""
    for name, layer in lora_layers(module).items():
        base: Any = layer.base_layer
        folded = base.weight.float() + layer.scale * (layer.lora_B.float() @ layer.lora_A.float())
        base.weight.copy_(folded.to(base.weight.dtype))
        home, _, last = name.rpartition(".")
        setattr(module.get_submodule(home), last, base)
