"""Divergences of rows of logits, in place, gradients in closed form.

With p the teacher, q the student, a and b their log-probs, tau the temperature, and <x> the sum over a row of q * x:
    forward_kl       value sum p (a - b)                            tau d/dz = q - p
    reverse_kl       value sum q (b - a)                            tau d/dz = q (b - a - <b - a>)
    jsd              value beta sum p (a - l) + (1 - beta) <b - l>  tau d/dz = (1 - beta) q (b - l - <b - l>),     l = log m
    skew_kl          value sum p (a - l)                            tau d/dz = (1 - alpha) q (<p / m> - p / m)
    skew_reverse_kl  value <b - l>                                  tau d/dz = q (g - <g>),   g = b - l - alpha q / m
(detached mixture: g = b - l). A derivative by q and the softmax's own, q (g - <g>), give each line; a term that is one constant per row
falls out of g - <g>.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkd.kernels.chunks import wide_blocks
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import FLOOR, soft_cap_, wide

TINY = 1e-37
"""Where both p and q vanish, so does each term: a mixture's log only has to be finite there."""


class _Softmax(NamedTuple):
    """A row's distribution: exp(log_XV) / sum_X1 = exp_XV / sum_X1."""

    log_XV: Tensor
    """logits less their largest"""
    exp_XV: Tensor
    sum_X1: Tensor

    def mean(self, x_XV: Tensor) -> Tensor:
        """[X, 1]; expectation of x."""
        return _dot(self.exp_XV, x_XV) / self.sum_X1


def divergence_rows_(
    student_CV: Tensor, teacher_CU: Tensor, how: Divergence, softcap: float | None, teacher_softcap: float | None, want_grad: bool
) -> Tensor:
    """D of each row, [C], in nats, wide. With `want_grad` the gradient replaces the student's logits; the teacher's are overwritten.

    Both are given before soft cap and temperature, none -inf.
    """
    shared_W = how.shared_W
    width = student_CV.shape[1] if shared_W is None else len(shared_W)
    value_C = wide(torch.empty_like(student_CV[:, 0]))
    scale = how.temperature**2 if how.t2_scale else 1.0
    student_CW, teacher_CW = student_CV[:, :width], teacher_CU[:, :width]
    for (part, z_XW), (_, t_XW) in zip(wide_blocks(student_CW, want_grad), wide_blocks(teacher_CW, False), strict=True):
        slope_XW = soft_cap_(z_XW, softcap, want_grad)
        soft_cap_(t_XW, teacher_softcap, False)
        for x_XW in (z_XW, t_XW):
            if shared_W is not None:
                x_XW.masked_fill_(~shared_W, FLOOR)
            x_XW.sub_(x_XW.amax(1, keepdim=True))
            if how.temperature != 1.0:
                x_XW.div_(how.temperature)
        value_C[part] = _KINDS[how.kind](z_XW, t_XW, how, scale / how.temperature).squeeze(1) * scale
        if slope_XW is not None:
            z_XW.mul_(slope_XW)
    if want_grad and width < student_CV.shape[1]:
        student_CV[:, width:].zero_()
    return value_C


def _softmax(log_XV: Tensor) -> _Softmax:
    exp_XV = log_XV.exp()
    return _Softmax(log_XV, exp_XV, exp_XV.sum(1, keepdim=True))


def _dot(x_XV: Tensor, y_XV: Tensor) -> Tensor:
    """[X, 1]; sum of products, without their temporary."""
    return (x_XV.unsqueeze(1) @ y_XV.unsqueeze(2)).squeeze(2)


# Each takes the logits of student and teacher, less their largest and divided by the temperature, overwrites the student's by the
# gradient times `slope`, and returns the value, [X, 1].


def _forward_kl(z_XV: Tensor, t_XV: Tensor, how: Divergence, slope: float) -> Tensor:
    apart_XV = t_XV - z_XV
    p_XV, q_XV = t_XV.exp_(), z_XV.exp_()
    p_sum_X1, q_sum_X1 = p_XV.sum(1, keepdim=True), q_XV.sum(1, keepdim=True)
    value_X1 = _dot(p_XV, apart_XV) / p_sum_X1 - p_sum_X1.log() + q_sum_X1.log()
    q_XV.mul_(slope / q_sum_X1).sub_(p_XV.mul_(slope / p_sum_X1))
    return value_X1


def _reverse_kl(z_XV: Tensor, t_XV: Tensor, how: Divergence, slope: float) -> Tensor:
    q = _softmax(z_XV)
    p_sum_X1 = torch.logsumexp(t_XV, 1, keepdim=True)
    apart_XV = z_XV.sub_(t_XV)
    mean_X1 = q.mean(apart_XV)
    apart_XV.sub_(mean_X1).mul_(q.exp_XV).mul_(slope / q.sum_X1)
    return mean_X1 + p_sum_X1 - q.sum_X1.log()


def _mixture(p: _Softmax, q: _Softmax, p_share: float, out_XV: Tensor) -> Tensor:
    """(p_share p + (1 - p_share) q) times the sum of q, into `out_XV`: its log lies near `q.log_XV`, so that their difference is exact."""
    return torch.mul(q.exp_XV, 1.0 - p_share, out=out_XV).addcmul_(p.exp_XV, p_share * q.sum_X1 / p.sum_X1).clamp_(min=TINY)


def _jsd(z_XV: Tensor, t_XV: Tensor, how: Divergence, slope: float) -> Tensor:
    beta, p, q = how.beta, _softmax(t_XV), _softmax(z_XV)
    p_self_X1 = p.mean(t_XV) - p.sum_X1.log()
    m_XV = _mixture(p, q, beta, t_XV).log_()
    p_kl_X1 = p_self_X1 - (p.mean(m_XV) - q.sum_X1.log())
    apart_XV = z_XV.sub_(m_XV)
    q_kl_X1 = q.mean(apart_XV)
    apart_XV.sub_(q_kl_X1).mul_(q.exp_XV).mul_(slope * (1.0 - beta) / q.sum_X1)
    return beta * p_kl_X1 + (1.0 - beta) * q_kl_X1


def _skew_kl(z_XV: Tensor, t_XV: Tensor, how: Divergence, slope: float) -> Tensor:
    alpha, p, q = how.alpha, _softmax(t_XV), _softmax(z_XV)
    p_self_X1 = p.mean(t_XV) - p.sum_X1.log()
    m_XV = _mixture(p, q, alpha, t_XV)
    ratio_XV = torch.div(p.exp_XV, m_XV, out=z_XV).mul_(q.sum_X1 / p.sum_X1)
    ratio_XV.sub_(q.mean(ratio_XV)).mul_(q.exp_XV).mul_(-slope * (1.0 - alpha) / q.sum_X1)
    return p_self_X1 - (p.mean(m_XV.log_()) - q.sum_X1.log())


def _skew_reverse_kl(z_XV: Tensor, t_XV: Tensor, how: Divergence, slope: float) -> Tensor:
    alpha, p, q = how.alpha, _softmax(t_XV), _softmax(z_XV)
    m_XV = _mixture(p, q, 1.0 - alpha, t_XV)
    share_XV = None if how.detach_mixture else torch.div(q.exp_XV, m_XV, out=p.exp_XV).mul_(alpha)
    apart_XV = z_XV.sub_(m_XV.log_())
    value_X1 = q.mean(apart_XV)
    g_XV = apart_XV if share_XV is None else apart_XV.sub_(share_XV)
    g_XV.sub_(q.mean(g_XV)).mul_(q.exp_XV).mul_(slope / q.sum_X1)
    return value_X1


_KINDS = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "skew_kl": _skew_kl,
    "skew_reverse_kl": _skew_reverse_kl,
}
