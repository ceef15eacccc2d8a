"""The teacher's side of top-k KL: turns stored rows into proper distributions, shared by all implementations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkd.core.errors import InputError, unknown_name
from speechkd.kernels.logits import FLOOR, wide

TAILS = ("bucket", "renormalise", "ignore")


class Target(NamedTuple):
    """A teacher row: K kept outcomes and perhaps the rest as one more; absent outcomes have log-prob FLOOR, probability 0."""

    ids_TK: Tensor
    valid_TK: Tensor
    logp_TK: Tensor
    tail_logp_T: Tensor
    tail: str

    def rows(self, part: slice) -> Target:
        """Some of the rows."""
        return Target(self.ids_TK[part], self.valid_TK[part], self.logp_TK[part], self.tail_logp_T[part], self.tail)


def teacher_target(ids_TK: Tensor, logp_TK: Tensor, tail_logp_T: Tensor | None, tail: str, vocabulary: int, dtype: torch.dtype) -> Target:
    """Stored top-k rows as a target for a student with `vocabulary` ids, no gradient.

    `bucket` and `renormalise` are normalised again, so that rounding in storage cannot make a KL negative.
    Raises InputError for an unknown `tail`, K = 0 or shapes that differ.
    """
    if tail not in TAILS:
        raise InputError(unknown_name("tail", tail, TAILS))
    if ids_TK.dim() != 2 or ids_TK.shape != logp_TK.shape or ids_TK.shape[1] == 0:
        raise InputError(f"ids_TK and logp_TK must both be [T, K] with K >= 1, are {list(ids_TK.shape)} and {list(logp_TK.shape)}")
    logp_TK = wide(logp_TK.detach())
    logp_TK = (logp_TK.double() if dtype == torch.float64 else logp_TK).clamp(min=FLOOR)
    valid_TK = logp_TK > FLOOR / 2
    # An empty slot repeats the row's likeliest id: removing an id from the rest twice is harmless, removing another one is not.
    ids_TK = ids_TK.long()
    ids_TK = torch.where(valid_TK, ids_TK, ids_TK.gather(1, logp_TK.argmax(dim=1, keepdim=True)))
    kept_T = torch.logsumexp(logp_TK, dim=1)
    tail_T = torch.full_like(kept_T, FLOOR)
    if tail == "bucket":
        if tail_logp_T is None:
            left_T = torch.log(-torch.expm1(kept_T.clamp(max=-torch.finfo(kept_T.dtype).eps)))
        else:
            left_T = tail_logp_T.detach().to(kept_T.dtype).clamp(min=FLOOR)
        # Where the kept ids are the whole vocabulary there is no rest: rounding must not put mass on an outcome that cannot happen.
        tail_T = torch.where(valid_TK.sum(dim=1) < vocabulary, left_T, tail_T)
    if tail != "ignore":
        whole_T = torch.logaddexp(kept_T, tail_T)
        logp_TK, tail_T = logp_TK - whole_T.unsqueeze(1), tail_T - whole_T
    return Target(ids_TK, valid_TK, logp_TK, tail_T, tail)
