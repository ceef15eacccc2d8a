"""Losses on an LM head, some rows at a time: loss and gradients in one forward pass, without any [T, V] tensor.

For each chunk of rows: one matrix product makes the logits, a row function turns them into values and, in the same memory, into their
gradient, one more product turns that into the gradient of the hidden states. A head that trains costs a third product. Backward only
scales what forward has made: under ZeRO-3 the weight is whole during forward alone.
Chunks split rows, not the vocabulary, so each row's softmax is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from speechkd.kernels.logits import Head, sum_kept, wide

RowLoss = Callable[[Tensor, slice, bool], Tensor]
"""(logits_CV, which rows, want gradient) -> value_C, wide.

The logits are the head's product in the model's own precision, before soft cap and temperature. Where the gradient is wanted, the
function writes d value / d logits over them."""

CHUNK_ELEMENTS = {"cpu": 40 << 20, "cuda": 256 << 20}
"""Logits per chunk: in bfloat16 80 MiB (CPU) or 512 MiB (GPU). Below 256 rows matrix products starve: 40 Mi logits are 276 rows of Qwen's
151,936 ids (measured: tests/bench/KERNELS.md)."""
BLOCK_ELEMENTS = 2 << 20
"""Logits that a row function on the CPU works on at once, 8 MiB in float32: they stay in the cache from one pass to the next."""


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Number of rows whose logits fit into CHUNK_ELEMENTS; at least 16, and a multiple of 64 where it is more."""
    rows = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"]) // max(vocabulary, 1)
    return rows // 64 * 64 if rows >= 64 else max(16, rows)


def wide_blocks(logits_CV: Tensor, write_back: bool) -> Iterator[tuple[slice, Tensor]]:
    """(which rows, their logits in the accumulation type), a few rows at a time; the caller may overwrite the block.

    What stands in the block when the next one is asked for becomes the logits' new content if `write_back` says so.
    """
    step = max(1, BLOCK_ELEMENTS // max(logits_CV.shape[1], 1))
    same = logits_CV.dtype == wide(logits_CV[:0]).dtype
    buffer_XV = None if same else wide(torch.empty_like(logits_CV[:step]))
    for start in range(0, logits_CV.shape[0], step):
        part = slice(start, min(start + step, logits_CV.shape[0]))
        if buffer_XV is None:
            yield part, logits_CV[part]
            continue
        block_XV = buffer_XV[: part.stop - part.start].copy_(logits_CV[part])
        yield part, block_XV
        if write_back:
            logits_CV[part].copy_(block_XV)


class _HeadTotal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        mask_T: Tensor | None,
        rows: RowLoss,
        want_hidden: bool,
        want_weight: bool,
        least: int,
    ) -> Tensor:
        T, most, want_grad = hidden_TD.shape[0], rows_per_chunk(weight_VD.shape[0], hidden_TD.device), want_hidden or want_weight
        most = max(most, min(least, 2 * most))
        step = -(-T // max(1, -(-T // most)))  # chunks of equal size: a small last one would read the whole weight for a few rows
        total = torch.zeros((), dtype=wide(hidden_TD[:0]).dtype, device=hidden_TD.device)
        grad_TD = torch.empty_like(hidden_TD) if want_hidden else None
        grad_VD = torch.zeros_like(weight_VD, dtype=total.dtype) if want_weight else None
        for start in range(0, T, max(1, step)):
            part = slice(start, min(start + step, T))
            logits_CV = torch.nn.functional.linear(hidden_TD[part], weight_VD)
            total += sum_kept(rows(logits_CV, part, want_grad), None if mask_T is None else mask_T[part])
            if grad_TD is not None:
                grad_TD[part] = logits_CV @ weight_VD.to(logits_CV.dtype)
            if grad_VD is not None:
                grad_VD += logits_CV.mT @ hidden_TD[part].to(logits_CV.dtype)  # summed wide over chunks, as one product would
        ctx.weight_dtype = weight_VD.dtype  # type: ignore[attr-defined]
        ctx.save_for_backward(*(grad for grad in (grad_TD, grad_VD) if grad is not None))
        ctx.want = want_hidden, want_weight  # type: ignore[attr-defined]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grads = iter(ctx.saved_tensors)  # type: ignore[attr-defined]
        hidden, weight = (next(grads) if want else None for want in ctx.want)  # type: ignore[attr-defined]
        return (
            None if hidden is None else hidden * grad_total.to(hidden.dtype),
            None if weight is None else (weight * grad_total).to(ctx.weight_dtype),  # type: ignore[attr-defined]
            None,
            None,
            None,
            None,
            None,
        )


def head_total(head: Head, mask_T: Tensor | None, rows: RowLoss, least: int = 0) -> Tensor:
    """Sum of a row loss over a head's rows, differentiable in the hidden states, and in the weight if it wants a gradient.

    Args:
        mask_T: rows that do not count, which the caller has zeroed, so that autograd zeroes their gradient; None: all count.
        least: rows of a chunk for which it may be twice as large as CHUNK_ELEMENTS says.
    """
    enabled = torch.is_grad_enabled()
    want_hidden, want_weight = head.hidden_TD.requires_grad and enabled, head.weight_VD.requires_grad and enabled
    weight_VD = head.weight_VD if want_weight else head.weight_VD.detach()
    total: Tensor = _HeadTotal.apply(head.hidden_TD, weight_VD, mask_T, rows, want_hidden, want_weight, least)
    return total
