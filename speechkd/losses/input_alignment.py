"""Input alignment: the last projected positions should be the transcript's token embeddings (DiVA, arXiv 2410.02678; P2, arXiv 2603.07025).

    L_IN = (1 / N) sum_{j=1..N} | S_{L-N+j} - E(y_j) |_2
S: the L projected positions, y: the N transcript tokens, E: the LLM's input embeddings. Aligned at the right end, because a causal
connector's last positions have seen most. The norm is not squared, as in DiVA's released code.

Reconstructed: what happens to a transcript longer than the projector's output (`overlong`), and whether N counts per utterance, as the
equation reads, or over the batch, as code that averages all valid tokens does (`per`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.types import LossOut
from speechkd.losses.states import distance_rows

OVERLONG, PER = ("truncate", "drop"), ("utterance", "token")


def input_alignment(
    audio_BQE: Tensor,
    audio_mask_BQ: Tensor,
    text_BNE: Tensor,
    text_mask_BN: Tensor,
    overlong: Literal["truncate", "drop"] = "truncate",
    per: Literal["utterance", "token"] = "utterance",
) -> LossOut:
    """Sum over utterances of their mean distance (or over tokens of the distance); embeddings get no gradient.

    Args:
        audio_BQE: projected audio; valid positions first, `audio_mask_BQ` boolean.
        text_BNE: embeddings of the transcript's tokens; valid ones first, `text_mask_BN` boolean. What stands in padding does not matter.
        overlong: more tokens than positions: `truncate` keeps the last ones that have a position, `drop` leaves the utterance out.
        per: count utterances (the equation) or tokens.
    An utterance without transcript or audio counts nothing. Raises InputError for shapes and unknown names.
    """
    if overlong not in OVERLONG:
        raise InputError(unknown_name("overlong", overlong, OVERLONG))
    if per not in PER:
        raise InputError(unknown_name("per", per, PER))
    if audio_BQE.shape[:2] != audio_mask_BQ.shape or text_BNE.shape[:2] != text_mask_BN.shape or len(audio_BQE) != len(text_BNE):
        given = [list(t.shape) for t in (audio_BQE, audio_mask_BQ, text_BNE, text_mask_BN)]
        raise InputError(f"audio, text and their masks must agree in B and length, have shapes {given}")
    if audio_BQE.shape[2] != text_BNE.shape[2]:
        raise InputError(f"projected audio of width {audio_BQE.shape[2]} cannot be compared with embeddings of width {text_BNE.shape[2]}")
    positions_B1, tokens_B1 = audio_mask_BQ.sum(1, keepdim=True), text_mask_BN.sum(1, keepdim=True)
    index_BN = positions_B1 - tokens_B1 + torch.arange(text_BNE.shape[1], device=text_BNE.device)
    keep_BN = text_mask_BN & (index_BN >= 0)
    if overlong == "drop":
        keep_BN = keep_BN & (tokens_B1 <= positions_B1)
    index_BN = index_BN.clamp(min=0).minimum((positions_B1 - 1).clamp(min=0))
    clean_BQE = audio_BQE.masked_fill(~audio_mask_BQ.unsqueeze(2), 0)
    aligned_BNE = clean_BQE.gather(1, index_BN.unsqueeze(2).expand(-1, -1, audio_BQE.shape[2]))
    rows_BN = distance_rows(aligned_BNE, text_BNE.masked_fill(~text_mask_BN.unsqueeze(2), 0))
    keep = keep_BN.to(rows_BN.dtype)
    if per == "token":
        return LossOut((rows_BN * keep).sum(), keep.sum())
    kept_B = keep.sum(1)
    return LossOut(((rows_BN * keep).sum(1) / kept_B.clamp(min=1.0)).sum(), (kept_B > 0).to(rows_BN.dtype).sum())
