"""A toy HeadLoss that needs a live teacher: squared distance of the two models' final states."""

from __future__ import annotations

from speechkd.core.types import LossOut, Needs
from speechkd.kernels.logits import Head, masked_rows, sum_rows, wide
from speechkd.losses.base import HeadLoss, PositionsConfig, Supervision, given


class Config(PositionsConfig):
    """Recipe block of `toy_head`."""

    scale: float = 1.0

    def needs(self) -> Needs:
        """Final states of a live teacher."""
        return self._from_teacher("dense", student="head")


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    teacher, mask_T = given(supervision.teacher, "toy_head", "dense"), supervision.mask_T
    apart_TD = wide(masked_rows(student.hidden_TD, mask_T)) - wide(masked_rows(teacher.hidden_TD, mask_T))
    return sum_rows(config.scale * apart_TD.square().mean(1), mask_T)


LOSS = HeadLoss(Config=Config, loss=_loss)
