"""A toy ClipLoss without a teacher: the mean square of a clip's projected positions."""

from __future__ import annotations

from speechkd.core.types import LossOut, Needs
from speechkd.kernels.logits import wide
from speechkd.losses.base import ClipFacts, ClipLoss, Clips, LossConfig


class Config(LossConfig):
    """Recipe block of `toy_clip`."""

    def needs(self) -> Needs:
        """Projected audio."""
        return Needs(student=frozenset({"projected"}))


def _loss(student: Clips, teacher: Clips | None, facts: ClipFacts, config: Config) -> LossOut:
    keep_C = facts.keep_C.to(wide(student.projected_CQD[:0]).dtype)
    clean_CQD = wide(student.projected_CQD).masked_fill(~facts.mask_CQ.unsqueeze(2), 0.0)
    return LossOut((clean_CQD.square().mean((1, 2)) * keep_C).sum(), keep_C.sum())


LOSS = ClipLoss(Config=Config, loss=_loss)
