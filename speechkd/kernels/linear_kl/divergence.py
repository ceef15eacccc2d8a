"""Divergences of two rows of logits: direction, temperature, T^2 and mixture, written once; `losses.divergences` is their public face.

p is the teacher, q the student, both softmax(logits / temperature) over the shared vocabulary:
    forward_kl       KL(p || q)                                       Hinton et al. 2015 (arXiv 1503.02531)
    reverse_kl       KL(q || p)                                       MiniLLM (arXiv 2306.08543)
    jsd              beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q           GKD (arXiv 2306.13649)
                     beta = 0 is forward KL and beta = 1 reverse KL, by GKD's convention
    skew_kl          KL(p || alpha p + (1 - alpha) q)                 DistiLLM (arXiv 2402.03898)
    skew_reverse_kl  KL(q || alpha q + (1 - alpha) p)                 DistiLLM
beta weighs the teacher. Mixtures are of probabilities (logsumexp), not of logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from speechkd.core.errors import InputError, unknown_name
from speechkd.kernels.logits import FLOOR, check_temperature, shared_vocabulary, wide

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Which divergence, at which temperature. Raises InputError for an unknown name or a parameter out of range."""

    name: str
    temperature: float = 1.0
    beta: float = 0.5
    alpha: float = 0.1
    t2_scale: bool = False
    shared_W: Tensor | None = None
    detach_mixture: bool = False
    """skew_reverse_kl only: the student inside the mixture gets no gradient (DistiLLM-2, arXiv 2503.07067)"""

    def __post_init__(self) -> None:
        if self.name not in DIVERGENCES:
            raise InputError(unknown_name("divergence", self.name, DIVERGENCES))
        check_temperature(self.temperature)
        if not 0.0 <= self.beta <= 1.0:
            raise InputError(f"beta must be between 0 and 1, given {self.beta}")
        if not 0.0 <= self.alpha < 1.0:
            raise InputError(f"alpha must be at least 0 and below 1, given {self.alpha}")

    def rows(self, student_TV: Tensor, teacher_TU: Tensor) -> Tensor:
        """D of each row, [T], in nats, wide; the teacher gets no gradient. Raises InputError if vocabularies differ without `shared_W`."""
        student_TW, teacher_TW = shared_vocabulary(wide(student_TV), wide(teacher_TU.detach()), self.shared_W)
        logq_TW, logp_TW = self._log_probs(student_TW), self._log_probs(teacher_TW)
        rows_T = self._between(logp_TW, logq_TW)
        return rows_T * self.temperature**2 if self.t2_scale else rows_T

    @property
    def kind(self) -> str:
        """The name, with a JSD of beta 0 or 1 as the KL that it is, and a skewed KL of alpha 0 likewise."""
        if self.name == "jsd" and self.beta in (0.0, 1.0):
            return "reverse_kl" if self.beta else "forward_kl"
        if self.alpha == 0.0 and self.name.startswith("skew"):
            return "forward_kl" if self.name == "skew_kl" else "reverse_kl"
        return self.name

    def _log_probs(self, logits_TW: Tensor) -> Tensor:
        return torch.log_softmax((logits_TW / self.temperature).clamp(min=FLOOR), dim=1)

    def _between(self, logp_TW: Tensor, logq_TW: Tensor) -> Tensor:
        name = self.kind
        if name == "forward_kl":
            return _kl(logp_TW, logq_TW)
        if name == "reverse_kl":
            return _kl(logq_TW, logp_TW)
        if name == "skew_kl":
            return _kl(logp_TW, _mix(logp_TW, logq_TW, self.alpha))
        if name == "skew_reverse_kl":
            inner_TW = logq_TW.detach() if self.detach_mixture else logq_TW
            return _kl(logq_TW, _mix(inner_TW, logp_TW, self.alpha))
        m_TW = _mix(logp_TW, logq_TW, self.beta)
        return self.beta * _kl(logp_TW, m_TW) + (1.0 - self.beta) * _kl(logq_TW, m_TW)


def _kl(a_TW: Tensor, b_TW: Tensor) -> Tensor:
    return (a_TW.exp() * (a_TW - b_TW)).sum(dim=1)


def _mix(a_TW: Tensor, b_TW: Tensor, share: float) -> Tensor:
    """log(share * exp(a) + (1 - share) * exp(b)), the share between 0 and 1."""
    return torch.logaddexp(a_TW + math.log(share), b_TW + math.log1p(-share))
