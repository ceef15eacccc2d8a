"""Language identification by the gate of a language-aware query bank (arXiv 2603.07025).

    L_LID = CE(g, language),   g: the gate's logits over the bank's K languages;   L = L_IN + L_OUT + lambda_LID L_LID
The weights of the sum are not given; all are 1 here (reconstructed).
"""

from __future__ import annotations

from torch import Tensor

from speechkd.core.types import LossOut, Needs
from speechkd.kernels.linear_cross_entropy.reference import cross_entropy_rows
from speechkd.kernels.logits import check_rows, masked_rows, sum_rows
from speechkd.losses.base import ClipFacts, ClipLoss, Clips, LossConfig, given


def language_id(gate_logits_BK: Tensor, language_B: Tensor, mask_B: Tensor) -> LossOut:
    """Sum over kept utterances of - log softmax(g)[language], in nats.

    Args:
        gate_logits_BK: the gate's logits, before any teacher forcing.
        language_B: index of the true language; anything where unknown.
        mask_B: boolean; False where the language is unknown or not in the bank, and for a dummy clip.
    Raises InputError for shapes.
    """
    check_rows(mask_B, {"gate_logits_BK": gate_logits_BK, "language_B": language_B})
    return sum_rows(cross_entropy_rows(masked_rows(gate_logits_BK, mask_B), masked_rows(language_B, mask_B)), mask_B)


class Config(LossConfig):
    """Recipe block of `language_id`; needs a projector with a language gate."""

    def needs(self) -> Needs:
        """The gate's logits; no teacher."""
        return Needs(student=frozenset({"projected", "gate"}))


def _loss(student: Clips, teacher: Clips | None, facts: ClipFacts, config: Config) -> LossOut:
    gate_CK = given(student.gate_CK, "language_id", "gate")
    return language_id(gate_CK, given(facts.language_C, "language_id", "language"), _keeps(facts, config))


def _keeps(facts: ClipFacts, config: Config) -> Tensor:
    return facts.keep_C & (given(facts.language_C, "language_id", "language") >= 0)


LOSS = ClipLoss(Config=Config, loss=_loss, keeps=_keeps)
