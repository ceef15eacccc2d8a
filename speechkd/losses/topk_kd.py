"""KL to a teacher of which only the K likeliest tokens were stored (token-level offline distillation).

Cutting to K tokens alone is a biased target: a student that matches it perfectly moves the tail's mass onto the K tokens (shown in
arXiv 2503.16870). `bucket` keeps the tail as one more outcome, a (K+1)-way KL, which is 0 exactly where the student gives the K tokens
and the rest their due.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from speechkd.core.types import LossOut, Need
from speechkd.kernels import linear_topk_kl
from speechkd.kernels.linear_topk_kl.reference import topk_kl_rows
from speechkd.kernels.linear_topk_kl.target import teacher_target
from speechkd.kernels.logits import check_rows, check_temperature, masked_rows, sum_rows
from speechkd.losses.base import HeadLoss, KernelConfig, PositionsConfig, Supervision, given


def topk_kl(
    student_logits_TV: Tensor,
    ids_TK: Tensor,
    logp_TK: Tensor,
    mask_T: Tensor,
    tail_logp_T: Tensor | None = None,
    temperature: float = 1.0,
    tail: str = "bucket",
) -> LossOut:
    """Sum over kept rows of KL(teacher || student) in nats; arguments and errors as `kernels.linear_topk_kl`, on full logits [T, V]."""
    signals = {"student_logits_TV": student_logits_TV, "ids_TK": ids_TK, "logp_TK": logp_TK}
    check_rows(mask_T, signals if tail_logp_T is None else {**signals, "tail_logp_T": tail_logp_T})
    check_temperature(temperature)
    target = teacher_target(ids_TK, logp_TK, tail_logp_T, mask_T, tail, student_logits_TV.shape[1], student_logits_TV.dtype)
    return sum_rows(topk_kl_rows(masked_rows(student_logits_TV, mask_T), target, temperature), mask_T)


LIVE_K = 64


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `topk_kl`."""

    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """must equal the column's capture temperature"""
    k: int | None = Field(default=None, ge=1)
    """ids kept of a live teacher, 64; of a stored one the column says how many"""
    t2_scale: bool = False
    """multiply by temperature squared"""
    tail: Literal["bucket", "renormalise", "ignore"] = "bucket"

    @property
    def live_k(self) -> int:
        """Ids kept of a live teacher."""
        return LIVE_K if self.k is None else self.k


def _loss(hidden_TD: Tensor, weight_VD: Tensor, supervision: Supervision, config: Config, softcap: float | None = None) -> LossOut:
    out = linear_topk_kl(
        hidden_TD,
        weight_VD,
        given(supervision.ids_TK, "topk_kl", "topk"),
        given(supervision.logp_TK, "topk_kl", "topk"),
        supervision.mask_T,
        tail_logp_T=supervision.tail_logp_T,
        temperature=config.temperature,
        impl=config.impl,
        tail=config.tail,
        softcap=softcap,
    )
    return LossOut(out.total * config.temperature**2, out.count) if config.t2_scale else out


NEED = Need(signals=frozenset({"topk"}), student=frozenset({"head"}))
LOSS = HeadLoss(NEED=NEED, Config=Config, loss=_loss)
