"""Frame stacking, a norm and an MLP over the rows that are read: the projector of most speech LLMs; and its two halves alone."""

from __future__ import annotations

from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels import dispatch, triton_launch
from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.stack_norm_mlp import packed, reference, triton_mlp
from speechkd.kernels.stack_norm_mlp.act_linear import act_linear as packed_act_linear
from speechkd.kernels.stack_norm_mlp.mlp import Mlp
from speechkd.kernels.stack_norm_mlp.norm import Norm


def _obstacle(first_input: object) -> str | None:
    return triton_launch.obstacle(first_input.states_LBFC[0] if isinstance(first_input, LayerStates) else first_input)


_MLP = {
    "triton": dispatch.Implementation(triton_mlp.stack_norm_mlp, _obstacle),
    "packed": dispatch.Implementation(packed.stack_norm_mlp, dispatch.no_obstacle),
    "reference": dispatch.Implementation(reference.stack_norm_mlp, dispatch.no_obstacle),
}
_FIRST = {
    "triton": dispatch.Implementation(triton_mlp.stack_norm_linear, _obstacle),
    "packed": dispatch.Implementation(packed.stack_norm_linear, dispatch.no_obstacle),
    "reference": dispatch.Implementation(reference.stack_norm_linear, dispatch.no_obstacle),
}
_LATER = {
    "triton": dispatch.Implementation(triton_mlp.act_linear, _obstacle),
    "packed": dispatch.Implementation(packed_act_linear, dispatch.no_obstacle),
    "reference": dispatch.Implementation(reference.act_linear, dispatch.no_obstacle),
}


def stack_norm_mlp(
    frames_BFC: Tensor | LayerStates,
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
    gated: bool = False,
    post_weight_D: Tensor | None = None,
    post_bias_D: Tensor | None = None,
) -> Tensor:
    """[B, F, C] encoder frames to [B, Q, D] audio positions, Q = ceil(F / stack); S = stack * C, H the hidden width.

    norm, linear layer, SiLU, linear layer, norm. The last partial stack is filled up with zero frames, so no frame is dropped; frames
    outside an utterance must be zero already. Frame stacking with SiLU as in wong26a (PMLR 312:61-77); RMSNorms and a gate as in Ultravox.

    Args:
        frames_BFC: in any type, or `LayerStates`: the layers' weighted sum is part of the op, over the frames that `rows_R` needs.
        in_weight_HS: its type is the op's.
        norm_weight_S, norm_bias_S: LayerNorm over the S stacked values, or over each frame's where they are C wide; without a bias RMSNorm;
            None: no norm.
        norm_eps: of both norms.
        rows_R: int64, flat positions in [B, Q] that are read, each once; the others are zero. None: all are read.
        impl: auto, triton (on a GPU: packed, with what is between its matrix products fused), packed (computes `rows_R` alone, and
            without the frames' gradient where they need none) or reference.
        gated: the first layer has 2 H outputs, and their first half is multiplied with SiLU of the second (SwiGLU).
        post_weight_D, post_bias_D: a norm of the output, as above.
    Raises InputError where shapes do not fit, or for an unknown `impl`.
    """
    if stack < 1 or in_weight_HS.shape[1] != stack * frames_BFC.shape[2]:
        raise InputError(f"stack {stack} of {frames_BFC.shape[2]}-wide frames does not fit a first layer of width {in_weight_HS.shape[1]}")
    if in_weight_HS.shape[0] != (1 + gated) * out_weight_DH.shape[1]:
        between = f"a {'gated' if gated else 'plain'} first layer of {in_weight_HS.shape[0]} outputs"
        raise InputError(f"{between} does not fit a second layer of width {out_weight_DH.shape[1]}")
    norm = None if norm_weight_S is None else Norm(norm_weight_S, norm_bias_S, norm_eps)
    if norm is not None and norm.width not in (frames_BFC.shape[2], in_weight_HS.shape[1]):
        raise InputError(f"a norm of width {norm.width} fits neither {frames_BFC.shape[2]}-wide frames nor {stack} of them")
    post_norm = None if post_weight_D is None else Norm(post_weight_D, post_bias_D, norm_eps)
    mlp = Mlp(in_weight_HS, in_bias_H, out_weight_DH, out_bias_D, norm, post_norm, gated)
    out: Tensor = dispatch.pick("stack_norm_mlp", impl, _MLP, frames_BFC)(frames_BFC, stack, mlp, rows_R)
    return out


def stack_norm_linear(
    frames_BFC: Tensor | LayerStates,
    stack: int,
    weight_HS: Tensor,
    bias_H: Tensor | None,
    norm: Norm | None,
    rows_R: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """The op's first half, [R, H], for a layer that is a module of its own; arguments as above, R = B * Q without `rows_R`."""
    out: Tensor = dispatch.pick("stack_norm_linear", impl, _FIRST, frames_BFC)(frames_BFC, stack, weight_HS, bias_H, norm, rows_R)
    return out


def act_linear(
    pre_RH: Tensor,
    weight_DH: Tensor,
    bias_D: Tensor | None,
    up_RH: Tensor | None = None,
    impl: str = "auto",
    owned: bool = False,
) -> Tensor:
    """A later half, [R, D]: SiLU(pre), times `up` where there is one, then a linear layer.

    `owned`: nobody else reads `pre_RH` and `up_RH`, so that backward may write its gradients over them.
    """
    out: Tensor = dispatch.pick("act_linear", impl, _LATER, pre_RH)(pre_RH, weight_DH, bias_D, up_RH, owned=owned)
    return out
