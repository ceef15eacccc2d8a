"""Helpers for ops on logits: accumulation type, row masks, soft-capping, argument checks, shared vocabulary."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

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


class Logits(Protocol):
    """Logits of T rows: a `Head` makes them when they are asked for, `Plain` holds them."""

    @property
    def vocabulary(self) -> int:
        """Number of ids."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what the logits are made of."""

    def logits(self, part: slice = slice(None)) -> Tensor:
        """Logits of some rows, wide, soft-capped."""

    def masked(self, mask_T: Tensor, name: str) -> Logits:
        """The same with masked-out rows zeroed. Raises InputError, about `name`, for another number of rows."""


class Head(NamedTuple):
    """Hidden states and the language-model head that reads them; [T, V] logits exist a few rows at a time."""

    hidden_TD: Tensor
    weight_VD: Tensor
    softcap: float | None = None
    """Gemma 2's final logit soft-capping"""

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self.weight_VD.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states."""
        return self.hidden_TD.dtype

    def logits(self, part: slice = slice(None)) -> Tensor:
        """Logits of some rows, wide, soft-capped."""
        return head_logits(self.hidden_TD[part], self.weight_VD, self.softcap)

    def masked(self, mask_T: Tensor, name: str) -> Head:
        """The same with masked-out rows zeroed. Raises InputError for another number of rows, and for a bad soft cap."""
        check_rows(mask_T, {f"{name} hidden states": self.hidden_TD})
        check_softcap(self.softcap)
        return self._replace(hidden_TD=masked_rows(self.hidden_TD, mask_T))

    def frozen(self) -> Head:
        """The same without gradient: a teacher's."""
        return Head(self.hidden_TD.detach(), self.weight_VD.detach(), self.softcap)


class Plain(NamedTuple):
    """Logits that are there already, [T, V]."""

    logits_TV: Tensor

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self.logits_TV.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return self.logits_TV.dtype

    def logits(self, part: slice = slice(None)) -> Tensor:
        """Logits of some rows, wide."""
        return wide(self.logits_TV[part])

    def masked(self, mask_T: Tensor, name: str) -> Plain:
        """The same with masked-out rows zeroed. Raises InputError for another number of rows."""
        check_rows(mask_T, {f"{name} logits": self.logits_TV})
        return Plain(masked_rows(self.logits_TV, mask_T))


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
