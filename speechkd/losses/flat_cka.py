"""Linear CKA within each utterance, on the flat rows that layer losses see (Kornblith et al., arXiv 1905.00414).

    CKA(X, Y) = <XX', YY'> / (|XX'| |YY'|), Frobenius, on rows centred within their utterance
The same numbers as `kernels.weighted_cka` with equal weights, without cutting rows into a padded batch, which would wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.core.types import LossOut
from speechkd.kernels.logits import check_rows, masked_rows, sum_rows, wide

TINY = 1e-30


def flat_cka(student_TD: Tensor, teacher_TE: Tensor, mask_T: Tensor, owner_T: Tensor) -> LossOut:
    """Sum over kept rows of 1 - CKA of the row's utterance; the teacher gets no gradient.

    Args:
        student_TD, teacher_TE: states; widths may differ.
        mask_T: boolean; False rows are in no utterance, whatever stands in them.
        owner_T: utterance of each row, whole numbers from 0 to below T.
    Count is kept rows, as for every layer loss, so long answers weigh more; an utterance of one row has no geometry and adds 0. Memory is
    T x T. Raises InputError for shapes.
    """
    check_rows(mask_T, {"student_TD": student_TD, "teacher_TE": teacher_TE, "owner_T": owner_T})
    keep_T = mask_T.to(wide(student_TD[:0]).dtype)
    size_T = _sums(keep_T, owner_T)
    student_TD = _centred(wide(masked_rows(student_TD, mask_T)), keep_T, size_T, owner_T)
    teacher_TE = _centred(wide(masked_rows(teacher_TE, mask_T).detach()), keep_T, size_T, owner_T)
    same_TT = owner_T.unsqueeze(0) == owner_T.unsqueeze(1)
    k_TT, m_TT = ((x @ x.mT).masked_fill(~same_TT, 0.0) for x in (student_TD, teacher_TE))
    km, kk, mm = (_sums((a * b).sum(1), owner_T) for a, b in ((k_TT, m_TT), (k_TT, k_TT), (m_TT, m_TT)))
    cka_T = km / (kk.clamp(min=TINY).sqrt() * mm.clamp(min=TINY).sqrt())
    return sum_rows((1.0 - cka_T[owner_T]) * (size_T[owner_T] >= 2), mask_T)


def _sums(values_TX: Tensor, owner_T: Tensor) -> Tensor:
    """Sums over each utterance's rows; as many slots as rows, because how many utterances there are only the device knows."""
    return torch.zeros_like(values_TX).index_add(0, owner_T, values_TX)


def _centred(x_TD: Tensor, keep_T: Tensor, size_T: Tensor, owner_T: Tensor) -> Tensor:
    """Rows minus their utterance's mean, at unit norm: CKA does not see the scale, and fourth powers then neither overflow nor vanish."""
    mean_TD = _sums(x_TD, owner_T) / size_T.clamp(min=1.0).unsqueeze(1)
    x_TD = (x_TD - mean_TD[owner_T]) * keep_T.unsqueeze(1)
    scale_T = _sums(x_TD.detach().square().sum(1), owner_T).sqrt()
    return x_TD / scale_T[owner_T].clamp(min=TINY).unsqueeze(1)
