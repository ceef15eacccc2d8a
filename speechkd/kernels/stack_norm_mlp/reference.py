"""Reference: pad, view, torch's layer norm and linear layers."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm, linear, pad, silu


def stack_frames(frames_BFC: Tensor, stack: int) -> Tensor:
    """[B, F, C] to [B, ceil(F / stack), stack * C]; the last partial stack is filled up with zeros."""
    B, F, C = frames_BFC.shape
    return pad(frames_BFC, (0, 0, 0, -F % stack)).reshape(B, -(-F // stack), stack * C)


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
) -> Tensor:
    """See the package."""
    x_BQS = stack_frames(frames_BFC, stack)
    if norm_weight_S is not None:
        x_BQS = layer_norm(x_BQS, norm_weight_S.shape, norm_weight_S, norm_bias_S, norm_eps)
    return linear(silu(linear(x_BQS, in_weight_HS, in_bias_H)), out_weight_DH, out_bias_D)
