"""Helpers for ops on logits: accumulation type, the rows that count, soft-capping, argument checks, shared vocabulary."""

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


def soft_cap_(logits_XV: Tensor, softcap: float | None, want_slope: bool) -> Tensor | None:
    """`soft_cap` in place; returns its derivative where that is wanted, None without a cap."""
    if softcap is None:
        return None
    logits_XV.div_(softcap).tanh_()
    slope_XV = logits_XV.square().neg_().add_(1.0) if want_slope else None  # d cap * tanh(x / cap) / dx
    logits_XV.mul_(softcap)
    return slope_XV


def head_logits(hidden_TD: Tensor, weight_VD: Tensor, softcap: float | None) -> Tensor:
    """[T, V] logits of the head in the accumulation type: the product in the model's own precision, everything after it wide."""
    logits_TV = torch.nn.functional.linear(hidden_TD, weight_VD)
    # a float64 hidden state stays float64 through the product, a half-precision one is widened after it
    return soft_cap(wide(logits_TV), softcap)


class KeptRows:
    """The rows that a mask keeps. Rows that count nothing are dropped before the head reads them where that is free: on the CPU.

    On another device their number is not known without waiting for it: there they stay, zeroed, and `mask_T` takes their values out.
    (A batch's rows are its responses already: what a mask leaves out is padding, and the rows of other streams.)
    """

    def __init__(self, mask_T: Tensor) -> None:
        """Raises InputError unless the mask is a boolean vector."""
        check_rows(mask_T, {})
        self._given_T, self._index_X = mask_T, _kept_on_a_cpu(mask_T)
        self.mask_T = mask_T if self._index_X is None else None

    def of(self, tensor: Tensor, name: str) -> Tensor:
        """The kept rows of a tensor [T, ...]. Raises InputError, about `name`, for another number of rows."""
        check_rows(self._given_T, {name: tensor})
        if self._index_X is None:
            return masked_rows(tensor, self._given_T)
        return tensor if len(self._index_X) == len(tensor) else tensor.index_select(0, self._index_X)

    def loss(self, total: Tensor) -> LossOut:
        """A sum over the kept rows with their count."""
        return LossOut(total, self._given_T.to(total.dtype).sum())


def _kept_on_a_cpu(mask_T: Tensor) -> Tensor | None:
    return mask_T.nonzero().squeeze(1) if mask_T.device.type == "cpu" else None


class Logits(Protocol):
    """Logits of T rows: a `Head` makes them when they are asked for, `Plain` holds them."""

    @property
    def vocabulary(self) -> int:
        """Number of ids."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what the logits are made of."""

    @property
    def softcap(self) -> float | None:
        """Soft cap that `raw` has not applied yet."""

    def logits(self, part: slice = slice(None)) -> Tensor:
        """Logits of some rows, wide, soft-capped; differentiable."""

    def raw(self, part: slice) -> Tensor:
        """Logits of some rows before the soft cap, in the model's own precision, none -inf, in memory that the caller may overwrite."""

    def kept(self, rows: KeptRows, name: str) -> Logits:
        """The same with the kept rows alone. Raises InputError, about `name`, for another number of rows."""


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

    def raw(self, part: slice) -> Tensor:
        """The head's product for some rows, in the model's own precision."""
        return torch.nn.functional.linear(self.hidden_TD[part], self.weight_VD)

    def kept(self, rows: KeptRows, name: str) -> Head:
        """The same with the kept rows alone. Raises InputError for another number of rows, and for a bad soft cap."""
        check_softcap(self.softcap)
        return self._replace(hidden_TD=rows.of(self.hidden_TD, f"{name} hidden states"))

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

    @property
    def softcap(self) -> None:
        """None: logits that are there are capped already."""
        return None

    def logits(self, part: slice = slice(None)) -> Tensor:
        """Logits of some rows, wide."""
        return wide(self.logits_TV[part])

    def raw(self, part: slice) -> Tensor:
        """A wide copy of some rows."""
        return wide(self.logits_TV[part]).clamp(min=FLOOR)

    def kept(self, rows: KeptRows, name: str) -> Plain:
        """The same with the kept rows alone. Raises InputError for another number of rows."""
        return Plain(rows.of(self.logits_TV, f"{name} logits"))


def check_shared(vocabulary: int, teacher_vocabulary: int, shared_W: Tensor | None) -> None:
    """Raises InputError where vocabularies differ in size without `shared_W`, or `shared_W` is not boolean of the smaller size."""
    if shared_W is None:
        if vocabulary != teacher_vocabulary:
            raise InputError(
                f"student vocabulary {vocabulary} and teacher vocabulary {teacher_vocabulary} differ: "
                "say which ids both tokenizers share (shared_W)"
            )
        return
    W = min(vocabulary, teacher_vocabulary)
    if shared_W.dtype != torch.bool or shared_W.shape != (W,):
        raise InputError(f"shared_W must be boolean of shape [{W}], is {shared_W.dtype} of shape {list(shared_W.shape)}")


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
    check_shared(student_TV.shape[-1], teacher_TU.shape[-1], shared_W)
    if shared_W is None:
        return student_TV, teacher_TU
    W = len(shared_W)
    return student_TV[:, :W].masked_fill(~shared_W, FLOOR), teacher_TU[:, :W].masked_fill(~shared_W, FLOOR)


def sum_kept(rows_T: Tensor, mask_T: Tensor | None) -> Tensor:
    """Sum of per-row values, of those that a mask keeps. Multiplying by it keeps the graph even if no row is left."""
    return rows_T.sum() if mask_T is None else (rows_T * mask_T.to(rows_T.dtype)).sum()


def sum_rows(rows_T: Tensor, mask_T: Tensor) -> LossOut:
    """Masked sum of per-row values as a LossOut."""
    return LossOut(sum_kept(rows_T, mask_T), mask_T.to(rows_T.dtype).sum())
