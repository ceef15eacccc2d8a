"""Only the rows that are read, and closed forms of the layers' backward (`norm_linear`, `act_linear`)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.stack_norm_mlp.act_linear import act_linear
from speechkd.kernels.stack_norm_mlp.mlp import Mlp
from speechkd.kernels.stack_norm_mlp.norm import Norm
from speechkd.kernels.stack_norm_mlp.norm_linear import norm_linear
from speechkd.kernels.stack_norm_mlp.rows import real_frames, scattered, stacked_rows


def stack_norm_mlp(frames_BFC: Tensor | LayerStates, stack: int, mlp: Mlp, rows_R: Tensor | None) -> Tensor:
    """See the package."""
    pre_RG = stack_norm_linear(frames_BFC, stack, mlp.in_weight_HS, mlp.in_bias_H, mlp.norm, rows_R)
    out_RD = act_linear(pre_RG, mlp.out_weight_DH, mlp.out_bias_D, None, mlp.gated)
    out_RD = out_RD if mlp.post_norm is None else mlp.post_norm.of(out_RD)
    return scattered(out_RD, rows_R, frames_BFC.shape[0], -(-frames_BFC.shape[1] // stack))


def stack_norm_linear(
    frames_BFC: Tensor | LayerStates, stack: int, weight_HS: Tensor, bias_H: Tensor | None, norm: Norm | None, rows_R: Tensor | None
) -> Tensor:
    """See the package."""
    x_RS = stacked_rows(frames_BFC, stack, rows_R).to(weight_HS.dtype)
    if norm is None:
        return linear(x_RS, weight_HS, bias_H)
    real_Rk = real_frames(frames_BFC, stack, rows_R) if norm.width < x_RS.shape[1] else None
    return norm_linear(x_RS, weight_HS, bias_H, norm, real_Rk)
