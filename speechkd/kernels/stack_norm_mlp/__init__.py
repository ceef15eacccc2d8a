"""Frame stacking, optional LayerNorm and a two-layer MLP over the rows that are read: the projector of most speech LLMs."""

from __future__ import annotations

from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels import dispatch
from speechkd.kernels.stack_norm_mlp import packed, reference, triton_mlp
from speechkd.kernels.triton_launch import obstacle

_IMPLEMENTATIONS = {
    "triton": dispatch.Implementation(triton_mlp.stack_norm_mlp, obstacle),
    "packed": dispatch.Implementation(packed.stack_norm_mlp, dispatch.no_obstacle),
    "reference": dispatch.Implementation(reference.stack_norm_mlp, dispatch.no_obstacle),
}


def stack_norm_mlp(
    frames_BFC: Tensor,
    stack: int,
    in_weight_HS: Tensor,
    in_bias_H: Tensor | None,
    out_weight_DH: Tensor,
    out_bias_D: Tensor | None,
    norm_weight_S: Tensor | None = None,
    norm_bias_S: Tensor | None = None,
    norm_eps: float = 1e-5,
    rows_R: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """[B, F, C] encoder frames to [B, Q, D] audio positions, Q = ceil(F / stack); S = stack * C, H the hidden width.

    The last partial stack is filled up with zero frames, so no frame is dropped; frames outside an utterance must be zero already.
    LayerNorm runs over the S stacked values, only if `norm_weight_S` is given. Frame stacking with SiLU as in wong26a (PMLR 312:61-77).

    Args:
        rows_R: int64, flat positions in [B, Q] that are read, each once; the others are zero. None: all are read.
        impl: auto, triton (on a GPU: packed, with what is between its matrix products fused), packed (computes `rows_R` alone, and
            without the frames' gradient where they need none) or reference.
    Raises InputError where `stack` times C is not S, or for an unknown `impl`.
    """
    if stack < 1 or in_weight_HS.shape[1] != stack * frames_BFC.shape[2]:
        raise InputError(f"stack {stack} of {frames_BFC.shape[2]}-wide frames does not fit a first layer of width {in_weight_HS.shape[1]}")
    run = dispatch.pick("stack_norm_mlp", impl, _IMPLEMENTATIONS, frames_BFC)
    return run(frames_BFC, stack, in_weight_HS, in_bias_H, out_weight_DH, out_bias_D, norm_weight_S, norm_bias_S, norm_eps, rows_R)
