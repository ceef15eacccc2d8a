"""Cross-entropy on response tokens: sequence-level distillation and instruction tuning are the same formula on different answers.

    L_KD  = - sum_t log p_S(y^_t | y^_<t, prompt[audio]),   y^ the teacher's greedy answer to prompt[metadata]
    L_IFT = - sum_t log p_S(y_t  | y_<t,  prompt[audio]),   y  the dataset's answer (a column whose teacher is `label`)
wong26a, PMLR 312:61-77. Only response tokens count; the paper does not say how prompts are masked, this is the usual choice.
"""

from __future__ import annotations

from torch import Tensor

from speechkd.core.types import LossOut, Needs
from speechkd.kernels.linear_cross_entropy import cross_entropy_from
from speechkd.kernels.logits import Head, Logits
from speechkd.losses.base import HeadLoss, KernelConfig, Supervision, given


def response_ce(student: Logits, targets_T: Tensor, mask_T: Tensor, impl: str = "auto") -> LossOut:
    """Sum over kept rows of - log softmax(logits)[target], in nats.

    Args:
        student: at the positions that predict the response (`positions`).
        targets_T: the response's tokens; anything in rows that `mask_T` (bool) leaves out.
        impl: of the kernel (`kernels.linear_cross_entropy`).
    Raises InputError for shapes and `impl`.
    """
    return cross_entropy_from(student, targets_T, mask_T, impl)


class Config(KernelConfig):
    """Recipe block of `response_ce`."""

    def needs(self) -> Needs:
        """The answer's tokens."""
        return Needs(stored=frozenset({"response"}), student=frozenset({"head"}))


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    return response_ce(student, given(supervision.targets_T, "response_ce", "response"), supervision.mask_T, config.impl)


LOSS = HeadLoss(Config=Config, loss=_loss)
