"""Top-k KL of rows of logits, in place, gradient in closed form.

With q the student's softmax, p the teacher, m its kept mass (1 where it is a proper distribution), r the ids outside the K kept:
    bucket       d/dz_k = q_k - p_k    d/dz_r = q_r - p_tail * q_r / q_tail
    ignore       d/dz_k = m q_k - p_k  d/dz_r = m q_r
    renormalise  d/dz_k = q_k / q_kept - p_k,  0 outside
All have the form c * softmax over the rest for r; that softmax needs one exp over the row, in the logits' own buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.kernels.chunks import wide_blocks
from speechkd.kernels.linear_topk_kl.target import Target
from speechkd.kernels.logits import FLOOR, soft_cap_, wide


def topk_kl_rows_(logits_CV: Tensor, target: Target, temperature: float, softcap: float | None, want_grad: bool) -> Tensor:
    """KL of each row, [C], in nats, wide. With `want_grad` the gradient replaces the logits.

    Args:
        logits_CV: before soft cap and temperature.
        target: the same rows of the teacher.
    """
    value_C = wide(torch.empty_like(logits_CV[:, 0]))
    for part, z_XV in wide_blocks(logits_CV, want_grad):
        slope_XV = soft_cap_(z_XV, softcap, want_grad)
        value_C[part] = _block(z_XV, target.rows(part), temperature, want_grad)
        if slope_XV is not None:
            z_XV.mul_(slope_XV)
    return value_C


def _block(z_XV: Tensor, target: Target, temperature: float, want_grad: bool) -> Tensor:
    if temperature != 1.0:
        z_XV.div_(temperature)
    z_XK = z_XV.gather(1, target.ids_TK)
    z_XV.scatter_(1, target.ids_TK, FLOOR)
    most_X1 = z_XV.amax(1, keepdim=True)
    sum_X1 = z_XV.sub_(most_X1).exp_().sum(1, keepdim=True)
    value_X, grad_XK, outside_X = kept_and_rest(z_XK, (sum_X1.log() + most_X1).squeeze(1), target, want_grad)
    if grad_XK is not None and outside_X is not None:
        z_XV.mul_((outside_X / temperature).unsqueeze(1) / sum_X1)
        z_XV.scatter_(1, target.ids_TK, 0.0)  # where nothing is outside, the softmax over the rest is not 0 there
        z_XV.scatter_add_(1, target.ids_TK, grad_XK.div_(temperature))
    return value_X


def kept_and_rest(z_XK: Tensor, rest_X: Tensor, target: Target, want_grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(value [X], d/dz_k [X, K], c [X]) of rows whose K logits and whose other ids' log-sum-exp are given, wide; z is divided by tau.

    The rest is summed over the other ids: 1 - (mass of the K ids) loses all digits when small.
    """
    z_XK = z_XK.masked_fill(~target.valid_TK, FLOOR)
    kept_X = torch.logsumexp(z_XK, dim=1)
    all_X = kept_X if target.tail == "renormalise" else torch.logaddexp(kept_X, rest_X)
    p_XK, logq_XK = target.logp_TK.exp(), z_XK - all_X.unsqueeze(1)
    value_X = (p_XK * (target.logp_TK - logq_XK)).sum(dim=1)
    logq_tail_X, p_tail_X = rest_X - all_X, target.tail_logp_T.exp()
    if target.tail == "bucket":
        value_X += p_tail_X * (target.tail_logp_T - logq_tail_X)
    if not want_grad:
        return value_X, None, None
    m_X = p_XK.sum(dim=1) + p_tail_X
    outside_X = torch.zeros_like(rest_X) if target.tail == "renormalise" else m_X * logq_tail_X.exp() - p_tail_X
    return value_X, (m_X.unsqueeze(1) * logq_XK.exp() - p_XK).masked_fill_(~target.valid_TK, 0.0), outside_X
