"""A toy LayerLoss with a learned part: one linear map to the teacher's width, then the squared distance at the top layers."""

from __future__ import annotations

from torch import Tensor, nn

from speechkd.core.types import LossOut
from speechkd.kernels.logits import masked_rows, sum_rows, wide
from speechkd.losses.base import LayerConfig, LayerLoss, Layers


class Config(LayerConfig):
    """Recipe block of `toy_layer`."""

    def pairs(self, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
        """The last layer of each."""
        return [(student_layers, teacher_layers)]


def _loss(student: Layers, teacher: Layers, mask_T: Tensor, shared_W: Tensor | None, config: Config, part: nn.Module | None) -> LossOut:
    assert part is not None, "the loss learns a map"
    apart_TE = wide(part(masked_rows(student.states[0], mask_T))) - wide(masked_rows(teacher.states[0], mask_T).detach())
    return sum_rows(apart_TE.square().mean(1), mask_T)


LOSS = LayerLoss(Config=Config, loss=_loss, part=lambda config, pairs, width_in, width_out: nn.Linear(width_in, width_out, bias=False))
