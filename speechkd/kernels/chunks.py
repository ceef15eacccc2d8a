"""Losses on a frozen LM head, a few rows at a time: loss and hidden gradient in one forward pass, without any [T, V] tensor.

The weight gets no gradient and is not kept: under ZeRO-3 it is gathered only during forward, and backward needs only d total / d hidden
([T, D]), which forward has computed. Chunks split rows, not the vocabulary, so each row's softmax is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from speechkd.kernels.logits import Head, soft_cap, wide

RowLoss = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]
"""(logits_CV, which rows, want gradient) -> (value_C, d value / d logits [C, V] or None).

The logits are wide, soft-capped, and not yet divided by a temperature. The function may overwrite them."""

CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits per chunk: 64 MiB (CPU) or 512 MiB (GPU) in float32. Smaller chunks slow the matrix products; larger ones only cost memory."""


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Number of rows whose logits fit into CHUNK_ELEMENTS; at least 16."""
    return max(16, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"]) // max(vocabulary, 1))


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden_TD: Tensor, weight_VD: Tensor, mask_T: Tensor, rows: RowLoss, softcap: float | None, want_grad: bool
    ) -> Tensor:
        T, step = hidden_TD.shape[0], rows_per_chunk(weight_VD.shape[0], hidden_TD.device)
        total = torch.zeros((), dtype=wide(hidden_TD[:0]).dtype, device=hidden_TD.device)
        grad_TD = torch.zeros_like(hidden_TD) if want_grad else None
        for start in range(0, T, step):
            part = slice(start, min(start + step, T))
            logits_CV = wide(torch.nn.functional.linear(hidden_TD[part], weight_VD))
            slope_CV = None
            if softcap is not None:
                logits_CV = soft_cap(logits_CV, softcap)
                slope_CV = 1.0 - (logits_CV / softcap).square_() if want_grad else None  # d cap*tanh(x/cap) / dx
            value_C, grad_CV = rows(logits_CV, part, want_grad)
            keep_C = mask_T[part].to(value_C.dtype)
            total += (value_C * keep_C).sum()
            if grad_TD is not None:
                assert grad_CV is not None, "the row loss returned no gradient"
                grad_CV = grad_CV if slope_CV is None else grad_CV.mul_(slope_CV)
                grad_CD = grad_CV.to(weight_VD.dtype) @ weight_VD
                grad_TD[part] = grad_CD * keep_C.to(grad_CD.dtype).unsqueeze(1)
        if grad_TD is not None:
            ctx.save_for_backward(grad_TD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TD,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_TD * grad_total.to(grad_TD.dtype), None, None, None, None, None


def frozen_head_total(head: Head, mask_T: Tensor, rows: RowLoss) -> Tensor:
    """Sum of a row loss over the rows of the mask, differentiable in the hidden states only. Masked-out hidden rows must be finite."""
    want_grad = head.hidden_TD.requires_grad and torch.is_grad_enabled()
    total: Tensor = _FrozenHead.apply(head.hidden_TD, head.weight_VD.detach(), mask_T, rows, head.softcap, want_grad)
    return total
