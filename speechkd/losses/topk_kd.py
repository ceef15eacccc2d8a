"""KL to a teacher of which only the K likeliest tokens were stored (token-level offline distillation).

Cutting to K tokens alone is a biased target: a student that matches it perfectly moves the tail's mass onto the K tokens (shown in
arXiv 2503.16870). `bucket` keeps the tail as one more outcome, a (K+1)-way KL, which is 0 exactly where the student gives the K tokens
and the rest their due.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from speechkd.core.types import LossOut, Needs, TeacherSignals
from speechkd.kernels.chunks import rows_per_chunk
from speechkd.kernels.linear_topk_kl import topk_kl_from
from speechkd.kernels.linear_topk_kl.teacher import teacher_topk
from speechkd.kernels.logits import Head, Plain
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
    return topk_kl_from(Plain(student_logits_TV), ids_TK, logp_TK, mask_T, tail_logp_T, temperature, tail)


LIVE_K = 64


@torch.no_grad()
def topk_of(teacher: Head, k: int, temperature: float, shared_W: Tensor | None) -> TeacherSignals:
    """What a column would have stored of a live teacher's rows: K likeliest ids, their log-probs and the tail's.

    Ids that the student does not share are part of the tail. A few rows at a time, so that [T, U] logits never exist.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    rows, step = len(teacher.hidden_TD), rows_per_chunk(teacher.vocabulary, teacher.hidden_TD.device)
    for start in range(0, max(rows, 1), step):
        logits_CU = teacher.raw(slice(start, start + step))
        parts.append(teacher_topk(logits_CU, k, temperature, shared_W, teacher.softcap))
    ids_TK, logp_TK, tail_T = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return TeacherSignals(ids_TK=ids_TK, logp_TK=logp_TK, tail_logp_T=tail_T)


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `topk_kl`."""

    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """must equal the column's capture temperature"""
    k: int | None = Field(default=None, ge=1)
    """ids kept of a live teacher, 64; of a stored one the column says how many"""
    t2_scale: bool = False
    """multiply by temperature squared"""
    tail: Literal["bucket", "renormalise", "ignore"] = "bucket"

    def needs(self) -> Needs:
        """Stored rows must have the loss's temperature, and its k where it says one."""
        return self._from_teacher("topk", student="head", temperature=self.temperature, k=self.k)


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    signals, mask_T = supervision.signals, supervision.mask_T
    if supervision.teacher is not None:
        k = LIVE_K if config.k is None else config.k
        signals = topk_of(supervision.teacher, k, config.temperature, supervision.shared_W)
    ids_TK, logp_TK = given(signals.ids_TK, "topk_kl", "topk"), given(signals.logp_TK, "topk_kl", "topk")
    out = topk_kl_from(student, ids_TK, logp_TK, mask_T, signals.tail_logp_T, config.temperature, config.tail, config.impl)
    return LossOut(out.total * config.temperature**2, out.count) if config.t2_scale else out


LOSS = HeadLoss(Config=Config, loss=_loss)
