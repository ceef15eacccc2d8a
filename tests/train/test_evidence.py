"""Top-k of a live teacher: what is not kept is in the tail, however few ids are shared."""

from __future__ import annotations

import pytest
import torch

from speechkd.losses import LOSSES
from speechkd.train.evidence import _topk

SHARED = [0, 2, 5]


@pytest.mark.parametrize("k", [2, 3, 6, 64])
def test_kept_ids_and_tail_are_the_whole_teacher_when_few_ids_are_shared(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_TE, weight_UE = torch.randn(7, 4, generator=generator), torch.randn(10, 4, generator=generator)
    shared_W = torch.zeros(9, dtype=torch.bool)
    shared_W[SHARED] = True
    found = _topk(hidden_TE, weight_UE, None, shared_W, LOSSES.get("topk_kl").Config(k=k))
    p_TU = torch.softmax(hidden_TE @ weight_UE.T, 1)
    kept_T = p_TU[:, SHARED].topk(min(k, len(SHARED)), 1).values.sum(1)
    torch.testing.assert_close(found["logp_TK"].exp().sum(1), kept_T)
    torch.testing.assert_close(found["tail_logp_T"].exp(), 1 - kept_T)
    assert found["ids_TK"].shape == (7, min(k, len(shared_W)))
