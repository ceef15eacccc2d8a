"""Top-k of a live teacher: what is not kept is in the tail, however few ids are shared."""

from __future__ import annotations

import pytest
import torch

from speechkd.kernels.logits import Head
from speechkd.losses.topk_kd import topk_of

SHARED = [0, 2, 5]


@pytest.mark.parametrize("k", [2, 3, 6, 64])
def test_kept_ids_and_tail_are_the_whole_teacher_when_few_ids_are_shared(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_TE, weight_UE = torch.randn(7, 4, generator=generator), torch.randn(10, 4, generator=generator)
    shared_W = torch.zeros(9, dtype=torch.bool)
    shared_W[SHARED] = True
    found = topk_of(Head(hidden_TE, weight_UE), k, 1.0, shared_W)
    p_TU = torch.softmax(hidden_TE @ weight_UE.T, 1)
    kept_T = p_TU[:, SHARED].topk(min(k, len(SHARED)), 1).values.sum(1)
    torch.testing.assert_close(found.logp_TK.exp().sum(1), kept_T)
    torch.testing.assert_close(found.tail_logp_T.exp(), 1 - kept_T)
    assert found.ids_TK.shape == (7, min(k, len(shared_W)))
