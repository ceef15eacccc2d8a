"""Input alignment: the last projected positions should be the transcript's token embeddings (DiVA, arXiv 2410.02678; arXiv 2603.07025).

    L_IN = (1 / N) sum_{j=1..N} | S_{L-N+j} - E(y_j) |_2
S: the L projected audio positions, y: the N transcript tokens, E: the LLM's input embeddings. Aligned at the right end, because a causal
projector's last positions have seen most. The norm is not squared, as in DiVA's released code.

Reconstructed (the papers do not say): what happens to a transcript longer than the projector's output (`overlong`). The mean is over each
utterance's tokens, then over utterances, as the equation reads.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.types import LossOut, Needs
from speechkd.losses.base import ClipFacts, ClipLoss, Clips, LossConfig, given
from speechkd.losses.states import distance_rows

Overlong = Literal["truncate", "drop"]
OVERLONG = ("truncate", "drop")


def input_alignment(
    audio_BQE: Tensor,
    audio_mask_BQ: Tensor,
    text_BNE: Tensor,
    text_mask_BN: Tensor,
    overlong: Overlong = "truncate",
) -> LossOut:
    """Sum over utterances of their mean distance; embeddings get no gradient.

    Args:
        audio_BQE: projected audio; valid positions first, `audio_mask_BQ` boolean.
        text_BNE: embeddings of the transcript's tokens; valid ones first, `text_mask_BN` boolean. What stands in padding does not matter.
        overlong: more tokens than positions: `truncate` keeps the last ones that have a position, `drop` leaves the utterance out.
    An utterance without transcript or audio counts nothing. Raises InputError for shapes and unknown names.
    """
    if overlong not in OVERLONG:
        raise InputError(unknown_name("overlong", overlong, OVERLONG))
    if audio_BQE.shape[:2] != audio_mask_BQ.shape or text_BNE.shape[:2] != text_mask_BN.shape or len(audio_BQE) != len(text_BNE):
        shapes = [list(t.shape) for t in (audio_BQE, audio_mask_BQ, text_BNE, text_mask_BN)]
        raise InputError(f"audio, text and their masks must agree in B and length, have shapes {shapes}")
    if audio_BQE.shape[2] != text_BNE.shape[2]:
        raise InputError(f"projected audio of width {audio_BQE.shape[2]} cannot be compared with embeddings of width {text_BNE.shape[2]}")
    index_BN = _right_aligned(audio_mask_BQ, text_mask_BN)
    keep_BN = text_mask_BN & (index_BN >= 0) & comparable(audio_mask_BQ, text_mask_BN, overlong).unsqueeze(1)
    index_BN = index_BN.clamp(min=0, max=audio_BQE.shape[1] - 1)
    clean_BQE = audio_BQE.masked_fill(~audio_mask_BQ.unsqueeze(2), 0)
    aligned_BNE = clean_BQE.gather(1, index_BN.unsqueeze(2).expand(-1, -1, audio_BQE.shape[2]))
    rows_BN = distance_rows(aligned_BNE, text_BNE.masked_fill(~text_mask_BN.unsqueeze(2), 0))
    keep = keep_BN.to(rows_BN.dtype)
    kept_B = keep.sum(1)
    return LossOut(((rows_BN * keep).sum(1) / kept_B.clamp(min=1.0)).sum(), (kept_B > 0).to(rows_BN.dtype).sum())


def comparable(audio_mask_BQ: Tensor, text_mask_BN: Tensor, overlong: Overlong) -> Tensor:
    """The utterances that count, boolean [B]: with audio and transcript, and, for `drop`, no more tokens than positions."""
    positions_B, tokens_B = audio_mask_BQ.sum(1), text_mask_BN.sum(1)
    keep_B = (positions_B > 0) & (tokens_B > 0)
    return keep_B & (tokens_B <= positions_B) if overlong == "drop" else keep_B


def _right_aligned(audio_mask_BQ: Tensor, text_mask_BN: Tensor) -> Tensor:
    """The audio position [B, N] that each token is compared with; negative for tokens that have none."""
    positions_B1, tokens_B1 = audio_mask_BQ.sum(1, keepdim=True), text_mask_BN.sum(1, keepdim=True)
    return positions_B1 - tokens_B1 + torch.arange(text_mask_BN.shape[1], device=text_mask_BN.device)


class Config(LossConfig):
    """Recipe block of `input_alignment`; the embeddings are those of the student's own LLM."""

    overlong: Overlong = Field(default="truncate")

    def needs(self) -> Needs:
        """The transcript; no teacher."""
        return Needs(student=frozenset({"projected", "words"}))


def _loss(student: Clips, teacher: Clips | None, facts: ClipFacts, config: Config) -> LossOut:
    words_CND = given(facts.words_CND, "input_alignment", "transcript")
    mask_CN = given(facts.words_mask_CN, "input_alignment", "transcript") & facts.keep_C.unsqueeze(1)
    return input_alignment(student.projected_CQD, facts.mask_CQ, words_CND, mask_CN, config.overlong)


def _keeps(facts: ClipFacts, config: Config) -> Tensor:
    mask_CN = given(facts.words_mask_CN, "input_alignment", "transcript")
    return facts.keep_C & comparable(facts.mask_CQ, mask_CN, config.overlong)


LOSS = ClipLoss(Config=Config, loss=_loss, keeps=_keeps)
