"""Helpers for ops on logits: accumulation type, row masks, soft-capping, argument checks, shared vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut

FLOOR = -1e30
"""Stands for -inf among logits and log-probs: its exp is exactly 0, yet 0 * FLOOR is 0 where 0 * -inf is NaN, in value and gradient."""


def wide(tensor: Tensor) -> Tensor:
    """float32, or float64 where the input is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def masked_rows(tensor: Tensor, mask_T: Tensor) -> Tensor:
    """`tensor` [T] or [T, X] with masked-out rows set to 0, so that their content (NaN, -100) affects neither value nor gradient."""
    return tensor.masked_fill(~mask_T.view(-1, *[1] * (tensor.dim() - 1)), 0)


def check_rows(mask_T: Tensor, tensors: dict[str, Tensor]) -> None:
    """Raises InputError unless the mask is a boolean vector and every tensor has its T rows."""
    if mask_T.dtype != torch.bool or mask_T.dim() != 1:
        raise InputError(f"mask_T must be a boolean vector, is {mask_T.dtype} of shape {list(mask_T.shape)}")
    for name, tensor in tensors.items():
        if tensor.dim() == 0 or tensor.shape[0] != mask_T.shape[0]:
            raise InputError(f"{name} must have the {mask_T.shape[0]} rows of mask_T, has shape {list(tensor.shape)}")


def check_temperature(temperature: float) -> None:
    """Raises InputError unless the temperature is positive and finite."""
    if not 0.0 < temperature < math.inf:
        raise InputError(f"temperature must be positive and finite, given {temperature}")


def check_softcap(softcap: float | None) -> None:
    """Raises InputError unless the soft cap is absent, or positive and finite."""
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise InputError(f"softcap must be positive and finite, given {softcap}")


def soft_cap(logits_TV: Tensor, softcap: float | None) -> Tensor:
    """Gemma 2's `final_logit_softcapping`: softcap * tanh(logits / softcap); applied before the temperature."""
    return logits_TV if softcap is None else softcap * torch.tanh(logits_TV / softcap)


def head_logits(hidden_TD: Tensor, weight_VD: Tensor, softcap: float | None) -> Tensor:
    """[T, V] logits of the head in the accumulation type: the product in the model's own precision, everything after it wide."""
    logits_TV = torch.nn.functional.linear(hidden_TD, weight_VD)
    # a float64 hidden state stays float64 through the product, a half-precision one is widened after it
    return soft_cap(wide(logits_TV), softcap)


def shared_vocabulary(student_TV: Tensor, teacher_TU: Tensor, shared_W: Tensor | None) -> tuple[Tensor, Tensor]:
    """Restrict both models' logits to the shared ids when vocabularies differ, as if all other logits were -inf.

    Args:
        student_TV, teacher_TU: logits.
        shared_W: boolean, W = min(V, U): the ids on which both tokenizers agree; None: all ids agree, and then V must equal U.
    Returns:
        Two [T, W] tensors. Cutting equals masking with -inf; padding with zero logits would take real probability mass.
    Raises:
        InputError: sizes differ without `shared_W`, or `shared_W` has another shape.
    """
    V, U = student_TV.shape[-1], teacher_TU.shape[-1]
    if shared_W is None:
        if V != U:
            raise InputError(f"student vocabulary {V} and teacher vocabulary {U} differ: say which ids both tokenizers share (shared_W)")
        return student_TV, teacher_TU
    W = min(V, U)
    if shared_W.dtype != torch.bool or shared_W.shape != (W,):
        raise InputError(f"shared_W must be boolean of shape [{W}], is {shared_W.dtype} of shape {list(shared_W.shape)}")
    return student_TV[:, :W].masked_fill(~shared_W, FLOOR), teacher_TU[:, :W].masked_fill(~shared_W, FLOOR)


def sum_rows(rows_T: Tensor, mask_T: Tensor) -> LossOut:
    """Masked sum of per-row values as a LossOut. Multiplying by the mask keeps the graph even if no row is left."""
    mask = mask_T.to(rows_T.dtype)
    return LossOut((rows_T * mask).sum(), mask.sum())
