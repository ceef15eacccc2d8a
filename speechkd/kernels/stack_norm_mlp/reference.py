"""Reference: pad, view, torch's norms and linear layers on every row; rows that nobody reads are zero."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from speechkd.kernels.layer_sum import layer_sum
from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.stack_norm_mlp.act_linear import activated
from speechkd.kernels.stack_norm_mlp.mlp import Mlp
from speechkd.kernels.stack_norm_mlp.norm import Norm
from speechkd.kernels.stack_norm_mlp.rows import scattered, stack_frames


def stack_norm_mlp(frames_BFC: Tensor | LayerStates, stack: int, mlp: Mlp, rows_R: Tensor | None) -> Tensor:
    """See the package."""
    B, F, _ = frames_BFC.shape
    pre_RG = stack_norm_linear(frames_BFC, stack, mlp.in_weight_HS, mlp.in_bias_H, mlp.norm, None)
    out_XD = act_linear(pre_RG, mlp.out_weight_DH, mlp.out_bias_D, None, mlp.gated)
    out_XD = out_XD if mlp.post_norm is None else mlp.post_norm.of(out_XD)
    return scattered(out_XD if rows_R is None else out_XD[rows_R], rows_R, B, -(-F // stack))


def stack_norm_linear(
    frames_BFC: Tensor | LayerStates, stack: int, weight_HS: Tensor, bias_H: Tensor | None, norm: Norm | None, rows_R: Tensor | None
) -> Tensor:
    """See the package."""
    if isinstance(frames_BFC, LayerStates):
        frames_BFC = layer_sum(*frames_BFC, impl="reference")
    frames_BFC = frames_BFC.to(weight_HS.dtype)
    if norm is not None and norm.width == frames_BFC.shape[2]:  # each frame alone
        frames_BFC, norm = norm.of(frames_BFC), None
    x_BQS = stack_frames(frames_BFC, stack)
    out_XH = linear(x_BQS if norm is None else norm.of(x_BQS), weight_HS, bias_H).flatten(0, 1)
    return out_XH if rows_R is None else out_XH[rows_R]


def act_linear(
    pre_RG: Tensor, weight_DH: Tensor, bias_D: Tensor | None, up_RH: Tensor | None = None, gated: bool = False, owned: bool = False
) -> Tensor:
    """See the package."""
    return linear(activated(pre_RG, up_RH, gated), weight_DH, bias_D)
