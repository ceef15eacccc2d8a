"""Random-sampling KD: an unbiased sparse teacher (Sparse Logit Sampling, arXiv 2503.16870).

N tokens of each position were drawn from q ~ p^s, with weights w_i = count_i p_i / (q_i N), so E[sum_i w_i f(i)] = sum_v p_v f(v):
    L = - sum_i w_i log softmax(z / T)_i,        E[L] = H(p, student), E[dL/dz] = (softmax(z / T) - p) / T
The value is a cross-entropy: it lies above the KL by the teacher's entropy, which no student changes. Cutting to the K likeliest tokens
instead is biased: its minimum is not the teacher (same paper). When s is not 1, weights do not sum to 1: normalising would bias them.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from speechkd.core.types import LossOut, Needs
from speechkd.kernels.linear_topk_kl import topk_kl_from
from speechkd.kernels.logits import FLOOR, Head, Logits, check_rows, masked_rows, wide
from speechkd.losses.base import HeadLoss, KernelConfig, Supervision, given


def _log_weights(weights_TN: Tensor) -> Tensor:
    """Log-weights; FLOOR in an empty slot (weight 0), which the kernel leaves out."""
    weights_TN = wide(weights_TN.detach())
    return weights_TN.clamp(min=1e-30).log().masked_fill(weights_TN <= 0, FLOOR)


def _entropy(weights_TN: Tensor, mask_T: Tensor) -> Tensor:
    """- sum w log w over kept rows: added to sum w (log w - log q), it leaves the cross-entropy - sum w log q."""
    weights_TN = masked_rows(weights_TN, mask_T)
    return -(wide(weights_TN.detach()) * _log_weights(weights_TN)).sum()


def sampled_ce(
    student: Logits, ids_TN: Tensor, weights_TN: Tensor, mask_T: Tensor, temperature: float = 1.0, impl: str = "auto"
) -> LossOut:
    """Sum over kept rows of the cross-entropy against the sampled teacher, in nats.

    Args:
        student: at the predicting positions, not yet divided by `temperature`.
        ids_TN: different ids within a row, in [0, V); a slot of weight 0 is empty and its id is not looked at.
        weights_TN: importance weights, not negative.
        mask_T: bool; False rows change neither total nor count and get a zero gradient, whatever stands in them.
        temperature: divides the student's logits; must equal the temperature at which the teacher was sampled.
    Raises InputError for shapes, temperature and `impl`.
    """
    check_rows(mask_T, {"weights_TN": weights_TN})
    # The top-k kernel with its tail ignored is sum w (log w - log q), with the gradient wanted here: (sum w) q - w.
    logw_TN = _log_weights(masked_rows(weights_TN, mask_T))
    out = topk_kl_from(student, ids_TN, logw_TN, mask_T, None, temperature, "ignore", impl)
    return LossOut(out.total + _entropy(weights_TN, mask_T).to(out.total.dtype), out.count)


class Config(KernelConfig):
    """Recipe block of `sampled_kd`."""

    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """must equal the column's capture temperature"""
    t2_scale: bool = False
    """multiply by temperature squared"""

    def needs(self) -> Needs:
        """Stored draws; no live teacher is sampled."""
        return Needs(stored=frozenset({"response", "sampled"}), student=frozenset({"head"}), temperature=self.temperature)


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    ids_TN = given(supervision.signals.sampled_ids_TN, "sampled_kd", "sampled")
    weights_TN = given(supervision.signals.sampled_weights_TN, "sampled_kd", "sampled")
    out = sampled_ce(student, ids_TN, weights_TN, supervision.mask_T, config.temperature, config.impl)
    return LossOut(out.total * config.temperature**2, out.count) if config.t2_scale else out


LOSS = HeadLoss(Config=Config, loss=_loss)
