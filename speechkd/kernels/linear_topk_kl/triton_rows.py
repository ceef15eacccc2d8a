"""Top-k KL of a chunk of rows in two passes over its logits, in place, by Triton. Imports without Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.kernels.linear_topk_kl.target import Target
from speechkd.kernels.triton_launch import check_rows_tensor, launch, power_of_two


def topk_kl_rows_(logits_CV: Tensor, target: Target, temperature: float, softcap: float | None, want_grad: bool) -> Tensor:
    """KL of each row, [C], float32, in nats, as `reference.topk_kl_rows`; the logits become its gradient with respect to them.

    Args:
        logits_CV: the head's raw product, float32, bfloat16 or float16; its content is gone afterwards, with or without `want_grad`.
        target: the C teacher rows; a filled slot whose id is outside [0, V) gives the row the value NaN and touches no memory.
        temperature: divides the logits, after the soft cap.
        softcap: Gemma 2's final logit soft-capping, None without.
    """
    check_rows_tensor(logits_CV, "logits_CV")
    C, V = logits_CV.shape
    value_C = torch.empty(C, dtype=torch.float32, device=logits_CV.device)
    if C == 0:
        return value_C
    from speechkd.kernels.linear_topk_kl.triton_kernel import topk_kl

    by = launch("topk_kl", V)
    K = target.ids_TK.shape[1]
    with torch.cuda.device_of(logits_CV):
        topk_kl[(C,)](
            logits_CV,
            target.ids_TK.contiguous(),
            target.valid_TK.contiguous(),
            target.logp_TK.contiguous(),
            target.tail_logp_T.contiguous(),
            value_C,
            logits_CV.stride(0),
            V,
            K,
            float(softcap or 1.0),
            float(temperature),
            RENORMALISE=target.tail == "renormalise",
            BUCKET=target.tail == "bucket",
            WANT_GRAD=want_grad,
            CAPPED=softcap is not None,
            BLOCK_K=power_of_two(K),
            BLOCK=by.block,
            num_warps=by.num_warps,
            num_stages=by.num_stages,
        )
    return value_C


def teacher_topk_(logits_CU: Tensor, K: int, temperature: float = 1.0, softcap: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A live teacher's K likeliest ids, without a second [C, U] tensor. The logits are used up.

    The selection is torch.topk's (a radix select that reads the logits in place); the log-probs and the rest's mass are one pass.

    Returns:
        ids [C, K], likeliest first; their log-probs over the whole vocabulary [C, K]; log of the mass outside them [C], -inf for none.
        float32.
    """
    check_rows_tensor(logits_CU, "logits_CU")
    C, U = logits_CU.shape
    ids_CK = logits_CU.topk(K, dim=1).indices
    logp_CK = torch.empty(C, K, dtype=torch.float32, device=logits_CU.device)
    tail_logp_C = torch.empty(C, dtype=torch.float32, device=logits_CU.device)
    if C == 0:
        return ids_CK, logp_CK, tail_logp_C
    from speechkd.kernels.linear_topk_kl.triton_kernel import teacher_topk

    by = launch("teacher_topk", U)
    with torch.cuda.device_of(logits_CU):
        teacher_topk[(C,)](
            logits_CU,
            ids_CK,
            logp_CK,
            tail_logp_C,
            logits_CU.stride(0),
            U,
            K,
            float(softcap or 1.0),
            float(temperature),
            CAPPED=softcap is not None,
            BLOCK_K=power_of_two(K),
            BLOCK=by.block,
            num_warps=by.num_warps,
            num_stages=by.num_stages,
        )
    return ids_CK, logp_CK, tail_logp_C
