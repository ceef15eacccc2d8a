"""Divergence of a chunk of student and teacher rows, in place on the student's logits, by Triton. Imports without Triton."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import check_shared
from speechkd.kernels.triton_launch import check_rows_tensor, launch


def _kind(how: Divergence) -> tuple[str, float, float]:
    """(form of the kernel, weight of the teacher in the mixture, weight of the student)."""
    if how.kind == "jsd":
        return "JSD", how.beta, 1.0 - how.beta
    if how.kind == "skew_kl":
        return "SKEW", how.alpha, 1.0 - how.alpha
    if how.kind == "skew_reverse_kl":
        return ("SKEW_REVERSE_DETACHED" if how.detach_mixture else "SKEW_REVERSE"), 1.0 - how.alpha, how.alpha
    return ("FORWARD" if how.kind == "forward_kl" else "REVERSE"), 1.0, 1.0


def kl_rows_(
    student_CV: Tensor, teacher_CU: Tensor, how: Divergence, softcap: float | None, teacher_softcap: float | None, want_grad: bool
) -> Tensor:
    """The divergence of each row, [C], float32, in nats, as `Divergence.rows`; the student's logits become its gradient.

    Args:
        student_CV: the student head's raw product, float32, bfloat16 or float16; its content is gone afterwards.
        teacher_CU: the teacher's; read only, of any of these types.
        how: which divergence; temperature, mixture, shared ids.
        softcap, teacher_softcap: final logit soft-capping of each model, None without.
        want_grad: write the gradient; False leaves the logits as they are.
    Raises:
        InputError: rows or vocabularies that do not fit.
    """
    check_rows_tensor(student_CV, "student_CV")
    check_rows_tensor(teacher_CU, "teacher_CU")
    C, V = student_CV.shape
    if teacher_CU.shape[0] != C:
        raise InputError(f"teacher_CU must have the {C} rows of student_CV, has {teacher_CU.shape[0]}")
    check_shared(V, teacher_CU.shape[1], how.shared_W)
    value_C = torch.empty(C, dtype=torch.float32, device=student_CV.device)
    if C == 0:
        return value_C
    from speechkd.kernels.linear_kl import triton_kernel

    kind, teacher_share, student_share = _kind(how)
    by = launch("kl", V)
    with torch.cuda.device_of(student_CV):
        triton_kernel.kl[(C,)](
            student_CV,
            teacher_CU,
            student_CV if how.shared_W is None else how.shared_W.contiguous(),
            value_C,
            student_CV.stride(0),
            teacher_CU.stride(0),
            V,
            min(V, teacher_CU.shape[1]),
            float(softcap or 1.0),
            float(teacher_softcap or 1.0),
            float(how.temperature),
            how.temperature**2 if how.t2_scale else 1.0,
            math.log(teacher_share),
            math.log(student_share),
            KIND=getattr(triton_kernel, kind),
            WANT_GRAD=want_grad,
            CAPPED=softcap is not None,
            TEACHER_CAPPED=teacher_softcap is not None,
            SOME_SHARED=how.shared_W is not None,
            BLOCK=by.block,
            num_warps=by.num_warps,
            num_stages=by.num_stages,
        )
    return value_C
