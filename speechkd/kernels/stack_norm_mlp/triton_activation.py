"""What a projector does between its matrix products: bias, SiLU or GELU, gate; in place, by Triton. Imports without Triton.

Backward keeps only the product z: the same pass that turns z into its gradient makes the activation's output again, for the gradient
of the next layer's weight.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels.triton_launch import check_rows_tensor, launch

Activation = Literal["silu", "gelu"]


def _check(z_RH: Tensor, others: dict[str, Tensor | None]) -> None:
    check_rows_tensor(z_RH, "z_RH")
    for name, other_RH in others.items():
        if other_RH is not None:
            check_rows_tensor(other_RH, name)
            if other_RH.shape != z_RH.shape:
                raise InputError(f"{name} must have the shape {list(z_RH.shape)} of z_RH, has {list(other_RH.shape)}")


def _run(
    backward: bool, z_RH: Tensor, bias: Tensor | None, up: Tensor | None, up_bias: Tensor | None, out: Tensor, kind: Activation
) -> None:
    R, H = z_RH.shape
    if R == 0:
        return
    from speechkd.kernels.stack_norm_mlp import triton_kernel

    by = launch("activation", H)
    with torch.cuda.device_of(z_RH):
        (triton_kernel.activate_backward if backward else triton_kernel.activate)[(R, -(-H // by.block))](
            z_RH,
            z_RH if bias is None else bias.contiguous(),
            z_RH if up is None else up,
            z_RH if up_bias is None else up_bias.contiguous(),
            out,
            z_RH.stride(0),
            0 if up is None else up.stride(0),
            out.stride(0),
            H,
            KIND=getattr(triton_kernel, kind.upper()),
            BIASED=bias is not None,
            UP_BIASED=up_bias is not None,
            GATED=up is not None,
            BLOCK=by.block,
            num_warps=by.num_warps,
            num_stages=by.num_stages,
        )


def activate(
    z_RH: Tensor,
    bias_H: Tensor | None,
    activation: Activation,
    up_RH: Tensor | None = None,
    up_bias_H: Tensor | None = None,
    out_RH: Tensor | None = None,
) -> Tensor:
    """act(z + bias), times (up + up_bias) where a gate is given; [R, H] in z's type, computed in float32.

    Args:
        z_RH, up_RH: matrix products without their biases; rows may lie apart, as the halves of one [R, 2 H] product do.
        activation: silu, or gelu in its exact form.
        out_RH: where to write; may be `z_RH` itself where no backward follows.
    Raises:
        InputError: shapes or types that do not fit.
    """
    _check(z_RH, {"up_RH": up_RH, "out_RH": out_RH})
    out_RH = torch.empty_like(z_RH, memory_format=torch.contiguous_format) if out_RH is None else out_RH
    _run(False, z_RH, bias_H, up_RH, up_bias_H, out_RH, activation)
    return out_RH


def activate_backward_(
    grad_RH: Tensor,
    z_RH: Tensor,
    bias_H: Tensor | None,
    activation: Activation,
    up_RH: Tensor | None = None,
    up_bias_H: Tensor | None = None,
) -> None:
    """In place: z becomes d / d z (whose sum over rows is the bias's gradient), up likewise, and grad becomes `activate`'s output again."""
    _check(z_RH, {"up_RH": up_RH, "grad_RH": grad_RH})
    _run(True, z_RH, bias_H, up_RH, up_bias_H, grad_RH, activation)
