"""Distances between two models' hidden states at the same positions: what layer-wise and snapshot distillation choose from.

    jsd     JSD(softmax(s), softmax(t)) over the hidden dimension     bounded, no parameters (reconstructed default of L_ac)
    mse     |s - t|^2 / D                                             mean over the width, so that the value does not grow with the model
    cosine  1 - <s, t> / (|s| |t|)                                    direction alone
The paper does not print these forms: arXiv 2509.18579 names D and JSD and leaves the representation open.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.types import LossOut
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import check_rows, masked_rows, sum_rows, wide

DISTANCES = ("jsd", "mse", "cosine")


def state_distance(student_TD: Tensor, teacher_TD: Tensor, mask_T: Tensor, distance: str = "jsd") -> LossOut:
    """Sum over kept rows of the distance; the teacher gets no gradient.

    Args:
        student_TD, teacher_TD: states of one width, row by row the same positions.
        mask_T: boolean; False rows change neither total nor count, whatever stands in them.
        distance: jsd, mse or cosine.
    Raises InputError for shapes, widths that differ (a `LayerBridges` maps them) and an unknown distance.
    """
    if distance not in DISTANCES:
        raise InputError(unknown_name("distance", distance, DISTANCES))
    check_rows(mask_T, {"student_TD": student_TD, "teacher_TD": teacher_TD})
    if student_TD.shape != teacher_TD.shape:
        raise InputError(
            f"distance `{distance}` needs states of one width, has {student_TD.shape[-1]} and {teacher_TD.shape[-1]}: "
            "map them by a linear bridge, or compare by logit_lens or cka"
        )
    student_TD, teacher_TD = wide(masked_rows(student_TD, mask_T)), wide(masked_rows(teacher_TD, mask_T).detach())
    if distance == "jsd":
        return sum_rows(Divergence(name="jsd").rows(student_TD, teacher_TD), mask_T)
    if distance == "mse":
        return sum_rows((student_TD - teacher_TD).square().mean(dim=1), mask_T)
    cosine_T = (normalize(student_TD, dim=1) * normalize(teacher_TD, dim=1)).sum(dim=1)
    return sum_rows(1.0 - cosine_T, mask_T)


def distance_rows(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """|s - t|_2 of each row, not squared, [B], wide; a gradient of 0 where both are equal. The teacher gets none."""
    return torch.linalg.vector_norm(wide(student_BD) - wide(teacher_BD.detach()), dim=-1)
