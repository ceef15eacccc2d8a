"""What a loss is to the distiller: what it needs, its block in the recipe, and a function of hidden states and the frozen head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import Tensor

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.types import LossOut, Need


class LossConfig(Config):
    """Keys that every loss has."""

    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """factor in the sum of losses"""
    impl: str = "auto"
    """which implementation of the kernel runs"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What stands at the T predicting positions of a micro-batch, on the device; a field is None where the column has no such signal."""

    mask_T: Tensor
    """boolean; False rows count nothing"""
    targets_T: Tensor | None = None
    """the response token that each position predicts (signal `response`)"""
    ids_TK: Tensor | None = None
    logp_TK: Tensor | None = None
    """signal `topk`, at the capture temperature"""
    tail_logp_T: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss:
    """A loss on the LM head's output, never given logits."""

    NEED: Need
    Config: type[LossConfig]
    loss: Callable[[Tensor, Tensor, Supervision, Any, float | None], LossOut]
    """(hidden_TD, weight_VD, supervision, config, softcap) -> LossOut; runs inside the module that holds the head's weight"""


def given(tensor: Tensor | None, loss: str, signal: str) -> Tensor:
    """`tensor`, which the loss needs. Raises InputError if the batch lacks it."""
    if tensor is None:
        raise InputError(f"loss `{loss}` needs the signal `{signal}`, which this batch does not carry")
    return tensor
