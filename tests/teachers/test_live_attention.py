"""The attention that a live teacher takes from a flat batch equals PL-Distill's w, up to a scale that AwCKA ignores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from speechkd.teachers.live import audio_attention as flat
from tests.losses.equations import audio_attention as paper


def test_flat_and_padded_forms_agree() -> None:
    """Two rows of 9 positions: audio 1..3 and response 5..7; audio 2..3 and response 4..8, the last of which is masked out."""
    S, Q, audio, response = 9, 4, [range(1, 4), range(2, 4)], [range(5, 8), range(4, 8)]
    weights_BHSS = torch.randn(2, 3, S, S, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    batch: Any = SimpleNamespace(
        response_T=torch.tensor([*response[0], *(S + t for t in response[1]), S + 8]),
        mask_T=torch.tensor([True] * 7 + [False]),
        audio_to_A=torch.tensor([*audio[0], *(S + t for t in audio[1])]),
        audio_from_A=torch.tensor([0, 1, 2, Q, Q + 1]),
    )
    taken_CQ = flat(weights_BHSS, batch, (2, Q))
    padded_BHRQ = torch.zeros(2, 3, 4, Q, dtype=torch.float64)
    rows, columns = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, Q, dtype=torch.bool)
    for b in range(2):
        rows[b, : len(response[b])], columns[b, : len(audio[b])] = True, True
        padded_BHRQ[b, :, : len(response[b]), : len(audio[b])] = weights_BHSS[b][:, list(response[b])][:, :, list(audio[b])]
    torch.testing.assert_close(taken_CQ / taken_CQ.sum(1, keepdim=True), paper(padded_BHRQ, rows, columns))
