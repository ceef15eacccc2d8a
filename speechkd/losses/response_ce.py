"""Cross-entropy on response tokens: sequence-level distillation and instruction tuning are the same formula on different answers.

    L_KD  = - sum_t log p_S(y^_t | y^_<t, prompt[audio]),   y^ the teacher's greedy answer to prompt[metadata]
    L_IFT = - sum_t log p_S(y_t  | y_<t,  prompt[audio]),   y  the dataset's answer (a column whose teacher is `label`)
wong26a, PMLR 312:61-77. Only response tokens count; the paper does not say how prompts are masked, this is the usual choice.
"""

from __future__ import annotations

from torch import Tensor

from speechkd.core.types import LossOut, Need
from speechkd.kernels import linear_cross_entropy
from speechkd.kernels.linear_cross_entropy.reference import cross_entropy_rows
from speechkd.kernels.logits import check_rows, masked_rows, sum_rows
from speechkd.losses.base import HeadLoss, KernelConfig, Supervision, given


def response_ce(student_logits_TV: Tensor, targets_T: Tensor, mask_T: Tensor) -> LossOut:
    """Sum over kept rows of - log softmax(logits)[target], in nats.

    student_logits_TV stands at the predicting positions (`positions`); targets_T may hold anything in rows that mask_T (boolean) leaves
    out. Raises InputError for shapes.
    """
    check_rows(mask_T, {"student_logits_TV": student_logits_TV, "targets_T": targets_T})
    return sum_rows(cross_entropy_rows(masked_rows(student_logits_TV, mask_T), masked_rows(targets_T, mask_T)), mask_T)


class Config(KernelConfig):
    """Recipe block of `response_ce`."""


def _loss(hidden_TD: Tensor, weight_VD: Tensor, supervision: Supervision, config: Config, softcap: float | None = None) -> LossOut:
    targets_T = given(supervision.targets_T, "response_ce", "response")
    return linear_cross_entropy(hidden_TD, weight_VD, targets_T, supervision.mask_T, impl=config.impl, softcap=softcap)


NEED = Need(signals=frozenset({"response"}), student=frozenset({"head"}))
LOSS = HeadLoss(NEED=NEED, Config=Config, loss=_loss)
