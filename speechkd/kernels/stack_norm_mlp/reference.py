"""Reference: pad, view, torch's layer norm and linear layers on every row; rows that nobody reads are zero."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from speechkd.kernels.stack_norm_mlp.rows import scattered, stack_frames


def stack_norm_mlp(
    frames_BFC: Tensor,
    stack: int,
    in_weight_HS: Tensor,
    in_bias_H: Tensor | None,
    out_weight_DH: Tensor,
    out_bias_D: Tensor | None,
    norm_weight_S: Tensor | None,
    norm_bias_S: Tensor | None,
    norm_eps: float,
    rows_R: Tensor | None,
) -> Tensor:
    """See the package."""
    x_BQS = stack_frames(frames_BFC, stack)
    if norm_weight_S is not None:
        x_BQS = layer_norm(x_BQS, norm_weight_S.shape, norm_weight_S, norm_bias_S, norm_eps)
    out_BQD = linear(silu(linear(x_BQS, in_weight_HS, in_bias_H)), out_weight_DH, out_bias_D)
    return out_BQD if rows_R is None else scattered(out_BQD.flatten(0, 1)[rows_R], rows_R, *out_BQD.shape[:2])
