"""Random-sampling KD: an unbiased sparse teacher (Sparse Logit Sampling, arXiv 2503.16870).

N tokens of each position were drawn from q ~ p^s, with weights w_i = count_i p_i / (q_i N), so E[sum_i w_i f(i)] = sum_v p_v f(v):
    L = - sum_i w_i log softmax(z / T)_i,        E[L] = H(p, student), E[dL/dz] = (softmax(z / T) - p) / T
The value is a cross-entropy: it lies above the KL by the teacher's entropy, which no student changes. Cutting to the K likeliest tokens
instead has another minimum than the teacher (same paper). Weights are not normalised to 1 when s is not 1, which would cost unbiasedness.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from speechkd.core.types import LossOut, Need
from speechkd.kernels import linear_topk_kl
from speechkd.kernels.linear_topk_kl.reference import topk_kl_rows
from speechkd.kernels.linear_topk_kl.target import teacher_target
from speechkd.kernels.logits import FLOOR, check_rows, check_temperature, masked_rows, sum_rows, wide
from speechkd.losses.base import HeadLoss, KernelConfig, Supervision, given


def _logs(weights_TN: Tensor) -> Tensor:
    """Log-weights; an empty slot (weight 0) is an absent outcome."""
    weights_TN = wide(weights_TN.detach())
    return weights_TN.clamp(min=1e-30).log().masked_fill(weights_TN <= 0, FLOOR)


def _entropy(weights_TN: Tensor, mask_T: Tensor) -> Tensor:
    """- sum w log w over kept rows: what turns sum w (log w - log q) into the cross-entropy."""
    weights_TN = masked_rows(weights_TN, mask_T)
    return -(wide(weights_TN.detach()) * _logs(weights_TN)).sum()


def sampled_ce(student_logits_TV: Tensor, ids_TN: Tensor, weights_TN: Tensor, mask_T: Tensor, temperature: float = 1.0) -> LossOut:
    """Sum over kept rows of the cross-entropy against the sampled teacher, in nats.

    Args:
        student_logits_TV: at the predicting positions, not yet divided by `temperature`.
        ids_TN: different ids within a row, in [0, V); a slot of weight 0 is empty and its id is not looked at.
        weights_TN: importance weights, not negative.
        mask_T: boolean; False rows change neither total nor count and get a zero gradient, whatever stands in them.
        temperature: divides the student's logits; must equal the temperature at which the teacher was sampled.
    Raises InputError for shapes and temperature.
    """
    check_rows(mask_T, {"student_logits_TV": student_logits_TV, "ids_TN": ids_TN, "weights_TN": weights_TN})
    check_temperature(temperature)
    logw_TN = _logs(masked_rows(weights_TN, mask_T))
    target = teacher_target(ids_TN, logw_TN, None, mask_T, "ignore", student_logits_TV.shape[1], student_logits_TV.dtype)
    out = sum_rows(topk_kl_rows(masked_rows(student_logits_TV, mask_T), target, temperature), mask_T)
    return LossOut(out.total + _entropy(weights_TN, mask_T).to(out.total.dtype), out.count)


class Config(KernelConfig):
    """Recipe block of `sampled_kd`."""

    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """must equal the column's capture temperature"""
    t2_scale: bool = False
    """multiply by temperature squared"""


def _loss(hidden_TD: Tensor, weight_VD: Tensor, supervision: Supervision, config: Config, softcap: float | None = None) -> LossOut:
    ids_TN = given(supervision.sampled_ids_TN, "sampled_kd", "sampled")
    weights_TN = given(supervision.sampled_weights_TN, "sampled_kd", "sampled")
    mask_T = supervision.mask_T
    # The top-k kernel with its tail ignored is sum w (log w - log q), with the gradient wanted here: (sum w) q - w.
    logw_TN = _logs(masked_rows(weights_TN, mask_T))
    out = linear_topk_kl(
        hidden_TD, weight_VD, ids_TN, logw_TN, mask_T, temperature=config.temperature, impl=config.impl, tail="ignore", softcap=softcap
    )
    total = out.total + _entropy(weights_TN, mask_T).to(out.total.dtype)
    return LossOut(total * config.temperature**2 if config.t2_scale else total, out.count)


NEED = Need(signals=frozenset({"response", "sampled"}), student=frozenset({"head"}))
LOSS = HeadLoss(NEED=NEED, Config=Config, loss=_loss)
