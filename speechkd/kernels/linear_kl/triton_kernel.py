"""Divergence of one row of student and teacher logits a program. Needs Triton.

With p the teacher, q the student, m = w_p p + w_q q (`mixture`), z the student's logit after soft cap and temperature:
    forward_kl                  d/dz = q - p
    reverse_kl                  d/dz = q (log q/p - D)
    jsd        w_p = beta       d/dz = q (g - G),  g = w_q log q/m                      G = sum q g
    skew_kl    w_p = alpha      d/dz = q (g - G),  g = -w_q p/m
    skew_reverse_kl  w_q=alpha  d/dz = q (g - G),  g = log q/m - w_q q/m  (without the second term where the mixture is detached)
The first two need two passes: value and normalisers together, then the gradient. A mixture needs one more, as m needs both normalisers.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from speechkd.kernels.triton_logits import FLOOR, scaled, slope

FORWARD, REVERSE, JSD, SKEW, SKEW_REVERSE, SKEW_REVERSE_DETACHED = range(6)
_FORWARD, _REVERSE, _JSD, _SKEW, _SKEW_REVERSE = (tl.constexpr(kind) for kind in range(5))


@triton.jit
def shared_logits(
    student,
    teacher,
    shared,
    start,
    W,
    softcap,
    teacher_softcap,
    temperature,
    CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    SOME_SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(which ids both have, student's logits, teacher's logits) of one block; FLOOR where an id is not shared."""
    cols_B = start + tl.arange(0, BLOCK)
    inside_B = cols_B < W
    both_B = inside_B
    zq_B = scaled(tl.load(student + cols_B, mask=inside_B, other=float("-inf")), softcap, temperature, CAPPED)
    zp_B = scaled(tl.load(teacher + cols_B, mask=inside_B, other=float("-inf")), teacher_softcap, temperature, TEACHER_CAPPED)
    if SOME_SHARED:  # after the loads: a mask that differs from lane to lane would make them narrow
        both_B = inside_B & (tl.load(shared + cols_B, mask=inside_B, other=0) != 0)
        zq_B, zp_B = tl.where(both_B, zq_B, FLOOR), tl.where(both_B, zp_B, FLOOR)
    return both_B, zq_B, zp_B


@triton.jit
def over_mixture(r_B, log_wp, log_wq):
    """(log p/m, log q/m) from r = log p/q, exact also where one side's probability is 0."""
    near_B = tl.log(1.0 + tl.exp(-tl.abs(r_B + (log_wp - log_wq))))
    return tl.minimum(-log_wp, r_B - log_wq) - near_B, tl.minimum(-log_wq, -r_B - log_wp) - near_B


@triton.jit
def mixture_terms(r_B, q_B, p_B, log_wp, log_wq, KIND: tl.constexpr):
    """(term of the divergence, g) of a block; g without what is the same for all ids."""
    logpm_B, logqm_B = over_mixture(r_B, log_wp, log_wq)
    if KIND == _JSD:
        return tl.exp(log_wp) * p_B * logpm_B + tl.exp(log_wq) * q_B * logqm_B, tl.exp(log_wq) * logqm_B
    elif KIND == _SKEW:
        return p_B * logpm_B, -tl.exp(log_wq + logpm_B)
    elif KIND == _SKEW_REVERSE:
        return q_B * logqm_B, logqm_B - tl.exp(log_wq + logqm_B)
    else:
        return q_B * logqm_B, logqm_B


@triton.jit
def kl(
    student,
    teacher,
    shared,
    values,
    stride,
    teacher_stride,
    V,
    W,
    softcap,
    teacher_softcap,
    temperature,
    factor,
    log_wp,
    log_wq,
    KIND: tl.constexpr,
    WANT_GRAD: tl.constexpr,
    CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    SOME_SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """values[row] = factor * divergence; the row of `student` becomes its gradient, 0 at ids that are not shared."""
    row = tl.program_id(0).to(tl.int64)
    student += row * stride
    teacher += row * teacher_stride

    top_q, top_p = tl.full([], FLOOR, tl.float32), tl.full([], FLOOR, tl.float32)
    mass_q_B, mass_p_B, cross_B = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, W, BLOCK):
        both_B, zq_B, zp_B = shared_logits(
            student, teacher, shared, start, W, softcap, teacher_softcap, temperature, CAPPED, TEACHER_CAPPED, SOME_SHARED, BLOCK
        )
        now_q, now_p = tl.maximum(top_q, tl.max(zq_B, 0)), tl.maximum(top_p, tl.max(zp_B, 0))
        eq_B, ep_B = tl.where(both_B, tl.exp(zq_B - now_q), 0.0), tl.where(both_B, tl.exp(zp_B - now_p), 0.0)
        back_q, back_p = tl.exp(top_q - now_q), tl.exp(top_p - now_p)
        mass_q_B, mass_p_B = mass_q_B * back_q + eq_B, mass_p_B * back_p + ep_B
        if KIND == _FORWARD:
            cross_B = cross_B * back_p + ep_B * (zp_B - zq_B)
        if KIND == _REVERSE:
            cross_B = cross_B * back_q + eq_B * (zq_B - zp_B)
        top_q, top_p = now_q, now_p
    mass_q, mass_p = tl.sum(mass_q_B, 0), tl.sum(mass_p_B, 0)
    # no shared id at all: nothing to compare, and no logarithm of 0
    lse_q, lse_p = top_q + tl.log(tl.where(mass_q == 0.0, 1.0, mass_q)), top_p + tl.log(tl.where(mass_p == 0.0, 1.0, mass_p))

    g_mean = 0.0
    if KIND == _FORWARD:
        value = tl.sum(cross_B, 0) / tl.where(mass_p == 0.0, 1.0, mass_p) - lse_p + lse_q
    elif KIND == _REVERSE:
        value = tl.sum(cross_B, 0) / tl.where(mass_q == 0.0, 1.0, mass_q) - lse_q + lse_p
    else:
        value_B, g_B = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for start in range(0, W, BLOCK):
            both_B, zq_B, zp_B = shared_logits(
                student, teacher, shared, start, W, softcap, teacher_softcap, temperature, CAPPED, TEACHER_CAPPED, SOME_SHARED, BLOCK
            )
            logq_B, logp_B = zq_B - lse_q, zp_B - lse_p
            q_B, p_B = tl.exp(logq_B), tl.exp(logp_B)
            term_B, pull_B = mixture_terms(logp_B - logq_B, q_B, p_B, log_wp, log_wq, KIND)
            value_B += tl.where(both_B, term_B, 0.0)
            g_B += tl.where(both_B, q_B * pull_B, 0.0)
        value, g_mean = tl.sum(value_B, 0), tl.sum(g_B, 0)
    tl.store(values + row, factor * value)

    if WANT_GRAD:
        for start in range(0, V, BLOCK):
            both_B, zq_B, zp_B = shared_logits(
                student, teacher, shared, start, W, softcap, teacher_softcap, temperature, CAPPED, TEACHER_CAPPED, SOME_SHARED, BLOCK
            )
            logq_B, logp_B = zq_B - lse_q, zp_B - lse_p
            q_B = tl.exp(logq_B)
            if KIND == _FORWARD:
                grad_B = q_B - tl.exp(logp_B)
            elif KIND == _REVERSE:
                grad_B = q_B * (logq_B - logp_B - value)
            else:
                _, pull_B = mixture_terms(logp_B - logq_B, q_B, tl.exp(logp_B), log_wp, log_wq, KIND)
                grad_B = q_B * (pull_B - g_mean)
            grad_B = tl.where(both_B, factor * grad_B * slope(zq_B, softcap, temperature, CAPPED), 0.0)
            cols_B = start + tl.arange(0, BLOCK)
            tl.store(student + cols_B, grad_B.to(student.dtype.element_ty), mask=cols_B < V)
