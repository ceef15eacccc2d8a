"""Contrastive target: the teacher's answer pushed away from what it would say without hearing (CAAD, arXiv 2606.23052).

    z^ = z_pos + alpha (z_pos - z_neg)             z_pos: audio and text given, z_neg: audio masked; teacher-forced on the same Y*
    L  = lambda KL( softmax(z^ / tau) || p_S^tau ) + (1 - lambda) CE(Y*),   lambda = 0.7, tau = 2
Y* is the description that the teacher made of the metadata. Reconstructed: the exact parametrisation of the extrapolation, the token
mean, and no tau^2 factor. alpha = 1 was best for accuracy, 2 for the "shift" measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut, Needs
from speechkd.kernels.linear_cross_entropy import cross_entropy_from
from speechkd.kernels.linear_kl import divergence_from
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import FLOOR, Head, KeptRows, Logits, wide
from speechkd.losses.base import HeadLoss, KernelConfig, PositionsConfig, Supervision, given


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `contrastive`, with the paper's values."""

    negative: str = ""
    """name of the live teacher without the metadata: the same model, reading nothing"""
    alpha: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    kl_weight: float = Field(default=0.7, ge=0.0, le=1.0)
    """lambda; the rest is the weight of the CE"""
    temperature: float = Field(default=2.0, gt=0.0, allow_inf_nan=False)

    def needs(self) -> Needs:
        """The answer's tokens, and the whole distributions of both live passes."""
        return self._from_teacher("dense", stored=["response"], student="head")

    def live_teachers(self) -> dict[str, str]:
        """The pass that reads the metadata, and the one that does not."""
        return super().live_teachers() | ({"negative": self.negative} if self.negative else {})

    def check_teachers(self, name: str, models: Mapping[str, str]) -> None:
        """Raises ValueError unless both passes are there and are of one model."""
        if not self.negative:
            raise ValueError(f"loss `{name}` needs a second pass: set `losses.{name}.negative` to a live teacher that reads nothing")
        if models[self.negative] != models[self.teacher]:
            raise ValueError(
                f"loss `{name}` compares two passes of one model: `losses.{name}.negative` (`{self.negative}`: {models[self.negative]}) "
                f"must be of the same kind and model as `losses.{name}.teacher` (`{self.teacher}`: {models[self.teacher]})"
            )


def contrastive_target(positive_TU: Tensor, negative_TU: Tensor, alpha: float) -> Tensor:
    """z_pos + alpha (z_pos - z_neg), wide, without gradient; alpha = 0 is the plain teacher.

    An id that z_pos rules out (-inf) stays ruled out; one that only z_neg rules out is not pushed. Raises InputError for shapes.
    """
    if positive_TU.shape != negative_TU.shape:
        raise InputError(f"both passes must have one shape, have {list(positive_TU.shape)} and {list(negative_TU.shape)}")
    positive_TU, negative_TU = wide(positive_TU.detach()), wide(negative_TU.detach())
    ruled_out_TU = positive_TU <= FLOOR
    apart_TU = (positive_TU - negative_TU.clamp(min=FLOOR)).masked_fill(ruled_out_TU | (negative_TU <= FLOOR), 0.0)
    return (positive_TU + alpha * apart_TU).clamp(min=FLOOR)


class Contrast(NamedTuple):
    """Logits of the contrastive target, made of both passes a few rows at a time."""

    positive: Logits
    negative: Logits
    alpha: float

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self.positive.vocabulary

    @property
    def dtype(self) -> torch.dtype:
        """Of the positive pass."""
        return self.positive.dtype

    def logits(self, part: slice = slice(None)) -> Tensor:
        """z^ of some rows."""
        return contrastive_target(self.positive.logits(part), self.negative.logits(part), self.alpha)

    @property
    def softcap(self) -> None:
        """None: both passes are capped already."""
        return None

    def raw(self, part: slice) -> Tensor:
        """z^ of some rows, none -inf."""
        return self.logits(part)

    def kept(self, rows: KeptRows, name: str) -> Contrast:
        """The same with the kept rows alone. Raises InputError for another number of rows."""
        return self._replace(positive=self.positive.kept(rows, name), negative=self.negative.kept(rows, name))


def contrastive_kd(
    student: Logits,
    positive: Logits,
    negative: Logits,
    targets_T: Tensor,
    mask_T: Tensor,
    config: Config,
    shared_W: Tensor | None = None,
) -> LossOut:
    """Sum over kept rows of lambda KL + (1 - lambda) CE, in nats; the teacher gets no gradient.

    Args:
        student, positive, negative: at the positions that predict Y*; `positive` after the metadata, `negative` without.
        targets_T: tokens of Y*; anything in rows that `mask_T` (bool) leaves out.
        shared_W: see `kernels.logits.shared_vocabulary`; needed where the vocabularies differ.
    Raises InputError for shapes and vocabularies that differ without `shared_W`.
    """
    how = Divergence(name="forward_kl", temperature=config.temperature, shared_W=shared_W)
    ce = cross_entropy_from(student, targets_T, mask_T, config.impl)
    kl = divergence_from(student, Contrast(positive, negative, config.alpha), mask_T, how, config.impl)
    return LossOut((1.0 - config.kl_weight) * ce.total + config.kl_weight * kl.total, ce.count)


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    positive, negative = (given(head, "contrastive", "dense") for head in (supervision.teacher, supervision.negative))
    targets_T = given(supervision.targets_T, "contrastive", "response")
    return contrastive_kd(student, positive, negative, targets_T, supervision.mask_T, config, supervision.shared_W)


LOSS = HeadLoss(Config=Config, loss=_loss)
