"""The teacher's K likeliest ids from a chunk of its logits, for those who store them and for those who use them at once."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.kernels.linear_topk_kl.triton_rows import teacher_topk_
from speechkd.kernels.logits import soft_cap_, wide
from speechkd.kernels.triton_launch import obstacle


def teacher_topk(
    logits_CU: Tensor, k: int, temperature: float, shared_W: Tensor | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [C, K], their log-probs over the whole vocabulary [C, K], and the log of the remaining mass [C] (-inf if none).

    The tail is summed over the other ids; 1 - sum of the top k would lose all digits when small. Overwrites `logits_CU`.

    Args:
        logits_CU: of any type, before the soft cap; by Triton they are never widened.
        shared_W: boolean; only these ids are named, the mass of the others is in the tail. A slot that finds none has log-prob -inf.
    """
    if shared_W is None and obstacle(logits_CU) is None:
        return teacher_topk_(logits_CU, min(k, logits_CU.shape[1]), temperature, softcap)
    z_CU = wide(logits_CU)
    soft_cap_(z_CU, softcap, False)
    z_CU = z_CU if temperature == 1.0 else z_CU.div_(temperature)
    named_CW = z_CU if shared_W is None else z_CU[:, : len(shared_W)].masked_fill(~shared_W, -torch.inf)
    z_CK, ids_CK = named_CW.topk(min(k, named_CW.shape[1]), dim=1)
    left_CK = z_CU.gather(1, ids_CK).masked_fill_(z_CK.isfinite(), -torch.inf)  # an empty slot names an id whose mass stays in the tail
    rest_C = z_CU.scatter_(1, ids_CK, left_CK).logsumexp(1)
    all_C = torch.logaddexp(z_CK.logsumexp(1), rest_C)
    return ids_CK, z_CK - all_C.unsqueeze(1), rest_C - all_C
