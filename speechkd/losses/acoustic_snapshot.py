"""Acoustic distillation from the student's own frozen snapshot (arXiv 2509.18579): text supervision must not cost it its hearing.

    L_ac = mean over layers and audio positions of D( h_snapshot^l, h_S^l ),   weighted by alpha_ac = 0.05 in L_joint
Reconstructed: the digest says "D over audio-token positions and layers". D's representation is not stated; default softmax over the hidden
dimension, then JSD ("JSD everywhere"); MSE and cosine are options. Which layers, and mean rather than sum over them, are not stated either.
The snapshot has the student's architecture and hears the same clip, so positions and widths agree. It is 0 at step 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from speechkd.core.types import LossOut
from speechkd.losses.base import LayerConfig, LayerLoss, Layers, Positions
from speechkd.losses.layer_wise import Reduction, layer_map, layer_states


def acoustic_snapshot(
    student_LAD: Sequence[Tensor], snapshot_LAD: Sequence[Tensor], mask_A: Tensor, distance: str = "jsd", reduction: Reduction = "mean"
) -> LossOut:
    """Sum over kept audio positions of the distance, averaged over layers; the snapshot gets no gradient.

    Args:
        student_LAD, snapshot_LAD: states [A, D] of the same layers, at the flat audio positions of the batch.
        mask_A: boolean; False for padding and for the positions of a dummy clip.
        distance: jsd, mse or cosine (`states`).
        reduction: mean or sum over layers.
    Raises InputError for shapes, unpaired layers and an unknown distance.
    """
    return layer_states(student_LAD, snapshot_LAD, mask_A, distance, reduction)


class Config(LayerConfig):
    """Recipe block of `acoustic_snapshot`; its teacher is the snapshot."""

    weight: float = Field(default=0.05, ge=0.0, allow_inf_nan=False)
    at: Positions = "audio"
    every: int = Field(default=1, ge=1)
    distance: Literal["jsd", "mse", "cosine"] = "jsd"
    reduction: Reduction = "mean"

    def pairs(self, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
        """Every `every`-th layer with itself. Raises InputError where the student has none such."""
        return list(layer_map(student_layers, teacher_layers, self.every))


def _loss(student: Layers, teacher: Layers, mask_A: Tensor, shared_W: Tensor | None, config: Config, part: nn.Module | None) -> LossOut:
    return acoustic_snapshot(student.states, teacher.states, mask_A, config.distance, config.reduction)


LOSS = LayerLoss(Config=Config, loss=_loss)
