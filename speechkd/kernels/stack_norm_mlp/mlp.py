"""What the op is given, as its implementations take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from speechkd.kernels.stack_norm_mlp.norm import Norm


class Mlp(NamedTuple):
    """Norm, linear layer, SiLU (times a gate), linear layer, norm."""

    in_weight_HS: Tensor
    in_bias_H: Tensor | None
    out_weight_DH: Tensor
    out_bias_D: Tensor | None
    norm: Norm | None
    post_norm: Norm | None
    gated: bool
