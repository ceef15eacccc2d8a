"""Token divergences between a student's and a teacher's logits: the public face of direction, temperature and T^2.

Conventions, the same everywhere: p = softmax(teacher / temperature), q = softmax(student / temperature), natural logs, student first
in the argument list, no gradient to the teacher. `beta` weighs the teacher; beta = 0 is KL(p || q), beta = 1 is KL(q || p). All are 0
where both are equal. The formulas stand in `kernels/linear_kl/divergence.py`, below both this file and the fused form that shares them.

Common arguments: student_logits_TV [T, V] and teacher_logits_TU [T, U] at the predicting positions; mask_T boolean, False rows change
neither total nor count and get a zero gradient; t2_scale multiplies by temperature squared (Hinton et al.; off in GKD and PL-Distill);
shared_W boolean [min(V, U)] says which ids both tokenizers share and is required where V and U differ (all else counts as -inf).
All raise InputError for shapes, temperature, beta or alpha out of range and vocabularies that differ without `shared_W`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from speechkd.core.types import LossOut, Needs
from speechkd.kernels.linear_kl import divergence_from
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Head, Plain
from speechkd.losses.base import HeadLoss, KernelConfig, PositionsConfig, Supervision, given


def forward_kl(
    student_logits_TV: Tensor,
    teacher_logits_TU: Tensor,
    mask_T: Tensor,
    temperature: float = 1.0,
    t2_scale: bool = False,
    shared_W: Tensor | None = None,
) -> LossOut:
    """KL(p || q): the student covers all that the teacher does (Hinton et al. 2015, arXiv 1503.02531)."""
    how = Divergence(name="forward_kl", temperature=temperature, t2_scale=t2_scale, shared_W=shared_W)
    return divergence_from(Plain(student_logits_TV), Plain(teacher_logits_TU), mask_T, how)


def reverse_kl(
    student_logits_TV: Tensor,
    teacher_logits_TU: Tensor,
    mask_T: Tensor,
    temperature: float = 1.0,
    t2_scale: bool = False,
    shared_W: Tensor | None = None,
) -> LossOut:
    """KL(q || p): the student stays where the teacher is likely (MiniLLM, arXiv 2306.08543, here per token)."""
    how = Divergence(name="reverse_kl", temperature=temperature, t2_scale=t2_scale, shared_W=shared_W)
    return divergence_from(Plain(student_logits_TV), Plain(teacher_logits_TU), mask_T, how)


def jsd(
    student_logits_TV: Tensor,
    teacher_logits_TU: Tensor,
    mask_T: Tensor,
    temperature: float = 1.0,
    beta: float = 0.5,
    t2_scale: bool = False,
    shared_W: Tensor | None = None,
) -> LossOut:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649; beta = 0.5: arXiv 2509.18579).

    The ends are GKD's by convention, not by continuity: near 0 the value is about beta times the forward KL.
    """
    how = Divergence(name="jsd", temperature=temperature, beta=beta, t2_scale=t2_scale, shared_W=shared_W)
    return divergence_from(Plain(student_logits_TV), Plain(teacher_logits_TU), mask_T, how)


def skew_kl(
    student_logits_TV: Tensor,
    teacher_logits_TU: Tensor,
    mask_T: Tensor,
    temperature: float = 1.0,
    alpha: float = 0.1,
    t2_scale: bool = False,
    shared_W: Tensor | None = None,
) -> LossOut:
    """KL(p || alpha p + (1 - alpha) q) (DistiLLM, arXiv 2402.03898); alpha = 0 is the forward KL."""
    how = Divergence(name="skew_kl", temperature=temperature, alpha=alpha, t2_scale=t2_scale, shared_W=shared_W)
    return divergence_from(Plain(student_logits_TV), Plain(teacher_logits_TU), mask_T, how)


def skew_reverse_kl(
    student_logits_TV: Tensor,
    teacher_logits_TU: Tensor,
    mask_T: Tensor,
    temperature: float = 1.0,
    alpha: float = 0.1,
    t2_scale: bool = False,
    shared_W: Tensor | None = None,
    detach_mixture: bool = False,
) -> LossOut:
    """KL(q || alpha q + (1 - alpha) p) (DistiLLM); alpha = 0 is the reverse KL.

    `detach_mixture` gives the q inside the mixture no gradient, as DistiLLM-2 (arXiv 2503.07067) trains.
    """
    how = Divergence(
        name="skew_reverse_kl", temperature=temperature, alpha=alpha, t2_scale=t2_scale, shared_W=shared_W, detach_mixture=detach_mixture
    )
    return divergence_from(Plain(student_logits_TV), Plain(teacher_logits_TU), mask_T, how)


BETA, ALPHA = 0.5, 0.1
USES = {"beta": ("jsd",), "alpha": ("skew_kl", "skew_reverse_kl"), "detach_mixture": ("skew_reverse_kl",)}
"""Keys that only some divergences have"""


class Config(PositionsConfig, KernelConfig):
    """Recipe block of `divergence`: to a live teacher's whole distribution."""

    name: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"] = "forward_kl"
    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    beta: float | None = Field(default=None, ge=0.0, le=1.0)
    """jsd only: weight of the teacher; 0.5"""
    alpha: float | None = Field(default=None, ge=0.0, lt=1.0)
    """skew forms only; 0.1"""
    detach_mixture: bool = False
    """skew_reverse_kl only: as DistiLLM-2 trains"""
    t2_scale: bool = False

    @model_validator(mode="after")
    def _keys_of_the_named_one(self) -> Config:
        given = {"beta": self.beta is not None, "alpha": self.alpha is not None, "detach_mixture": self.detach_mixture}
        for key, names in USES.items():
            if given[key] and self.name not in names:
                raise ValueError(f"divergence `{self.name}` does not use `{key}`; those that do: {', '.join(names)}")
        return self

    def needs(self) -> Needs:
        """The whole distribution, which only a live teacher has."""
        return self._from_teacher("dense", student="head")


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    how = Divergence(
        name=config.name,
        temperature=config.temperature,
        beta=BETA if config.beta is None else config.beta,
        alpha=ALPHA if config.alpha is None else config.alpha,
        t2_scale=config.t2_scale,
        shared_W=supervision.shared_W,
        detach_mixture=config.detach_mixture,
    )
    teacher = given(supervision.teacher, "divergence", "dense")
    return divergence_from(student, teacher, supervision.mask_T, how, config.impl)


LOSS = HeadLoss(Config=Config, loss=_loss)
