"""Layer-wise distillation from a text teacher of another depth and width (P4, arXiv 2509.18579).

    g(i)      = round(i L_T / L_S)                                            their eq. 4: proportional to depth, layers counted from 1
    L_layer,i = (1 / |R|) sum_{t in R} D( f(h_T^{g(i)}), f(h_S^{i}) )         R: the response positions, the same tokens on both sides
    L_txt     = L_top + alpha_layer sum_{i in I} L_layer,i                    alpha_layer = 0.05; L_top: JSD of the outputs (`divergences`)
I is every layer ("layer-wise"), every n-th ("skip": 1 in 7 of 28 gives 7->9, 14->18, 21->27, 28->36) or none ("top").

Reconstructed: rounding is half up; f is not stated. Default f: the logit lens, each model's own final norm and head on its intermediate
state, softmax over the shared vocabulary, then JSD: no parameters, no width to bridge. Options: a learned Linear to the teacher's width
with cosine or MSE (`LayerBridges`, then `layer_states`), the same without it at equal widths, and CKA. Whether layers are summed or
averaged is not stated either: `reduction`; the equation as digested has a sum (28 layers then weigh 1.4 beside L_top).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut
from speechkd.kernels import linear_kl, weighted_cka
from speechkd.losses.states import state_distance

Reduction = Literal["sum", "mean"]


def layer_map(student_layers: int, teacher_layers: int, every: int = 1) -> tuple[tuple[int, int], ...]:
    """Pairs (student layer i, teacher layer g(i)), both counted from 1, for every `every`-th student layer; `every` = 0 gives none.

    Raises InputError for depths below 1, and for a skip that leaves no layer.
    """
    if student_layers < 1 or teacher_layers < 1:
        raise InputError(f"a layer map needs at least one layer on each side, given {student_layers} and {teacher_layers}")
    if every < 0 or every > student_layers:
        raise InputError(f"`every` must be between 0 (no layer) and {student_layers}, the student's depth, given {every}")
    if every == 0:
        return ()
    # half up in whole numbers: no layer depends on how a float rounds
    pairs = [(i, (2 * i * teacher_layers + student_layers) // (2 * student_layers)) for i in range(every, student_layers + 1, every)]
    return tuple((i, max(1, g)) for i, g in pairs)


def check_layer_map(pairs: Sequence[tuple[int, int]], student_layers: int, teacher_layers: int) -> None:
    """Raises InputError naming the first pair that points outside either model."""
    for i, g in pairs:
        if not 1 <= i <= student_layers or not 1 <= g <= teacher_layers:
            raise InputError(f"layer map {i}->{g} is out of range: student layers 1..{student_layers}, teacher layers 1..{teacher_layers}")


def logit_lens(
    student_LTD: Sequence[Tensor],
    weight_VD: Tensor,
    teacher_LTE: Sequence[Tensor],
    teacher_weight_UE: Tensor,
    mask_T: Tensor,
    divergence: str = "jsd",
    temperature: float = 1.0,
    shared_W: Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    reduction: Reduction = "sum",
    impl: str = "auto",
) -> LossOut:
    """Divergence of what both models' heads read in mapped pairs of layers; count is rows, so the value is the sum (or mean) of L_layer,i.

    Args:
        student_LTD, teacher_LTE: states of the mapped layers, pair by pair, AFTER each model's own final norm. transformers' last entry of
            `hidden_states` is normed already, the others are not.
        weight_VD, teacher_weight_UE: the heads, gathered; the rest as `kernels.linear_kl`, which never makes the [T, V] logits whole.
    Raises InputError for lists of different or no length, and as `linear_kl`.
    """
    _check_pairs(student_LTD, teacher_LTE)
    outs = [
        linear_kl(
            student_TD,
            weight_VD,
            teacher_TE,
            teacher_weight_UE,
            mask_T,
            divergence=divergence,
            temperature=temperature,
            shared_W=shared_W,
            softcap=softcap,
            teacher_softcap=teacher_softcap,
            impl=impl,
        )
        for student_TD, teacher_TE in zip(student_LTD, teacher_LTE, strict=True)
    ]
    return _over_layers(outs, reduction)


def layer_states(
    student_LTD: Sequence[Tensor], teacher_LTD: Sequence[Tensor], mask_T: Tensor, distance: str = "cosine", reduction: Reduction = "sum"
) -> LossOut:
    """`states.state_distance` over mapped pairs of layers of one width; count is rows. Raises InputError as it, and for unpaired lists."""
    _check_pairs(student_LTD, teacher_LTD)
    outs = [state_distance(s, t, mask_T, distance) for s, t in zip(student_LTD, teacher_LTD, strict=True)]
    return _over_layers(outs, reduction)


def layer_cka(
    student_LBTD: Sequence[Tensor], teacher_LBTE: Sequence[Tensor], mask_BT: Tensor, reduction: Reduction = "sum", impl: str = "auto"
) -> LossOut:
    """1 - linear CKA (Kornblith et al., arXiv 1905.00414) within each utterance, over mapped pairs of layers; widths may differ.

    Args:
        student_LBTD, teacher_LBTE: states [B, T, width] at each utterance's response positions, padded on the right.
        mask_BT: boolean, False for padding.
    Count is utterances with at least two valid positions: fewer have no geometry. Similarity is taken within an utterance, never across a
    batch, so that its neighbours do not matter. Raises InputError for shapes and unpaired lists.
    """
    _check_pairs(student_LBTD, teacher_LBTE)
    keep_B = mask_BT.sum(dim=1) >= 2
    outs = []
    for student_BTD, teacher_BTE in zip(student_LBTD, teacher_LBTE, strict=True):
        cka_B = weighted_cka(student_BTD, teacher_BTE.detach(), torch.ones_like(mask_BT, dtype=cka_dtype(student_BTD)), mask_BT, impl=impl)
        keep = keep_B.to(cka_B.dtype)
        outs.append(LossOut(((1.0 - cka_B) * keep).sum(), keep.sum()))
    return _over_layers(outs, reduction)


def cka_dtype(states: Tensor) -> torch.dtype:
    """float64 for float64 states, float32 for all others."""
    return torch.float64 if states.dtype == torch.float64 else torch.float32


class LayerBridges(nn.Module):
    """One learned Linear (no bias) per mapped pair, student width -> teacher width; all run in every call, in the order of the map."""

    def __init__(self, pairs: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.bridges = nn.ModuleList(nn.Linear(width_in, width_out, bias=False) for _ in range(pairs))

    def forward(self, student_LTD: Sequence[Tensor]) -> list[Tensor]:
        """L states [T, D] -> L states [T, E]."""
        return [bridge(states_TD) for bridge, states_TD in zip(self.bridges, student_LTD, strict=True)]


def _check_pairs(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    if not student or len(student) != len(teacher):
        raise InputError(f"layers must come in pairs, given {len(student)} of the student and {len(teacher)} of the teacher")


def _over_layers(outs: Sequence[LossOut], reduction: Reduction) -> LossOut:
    total = torch.stack([out.total for out in outs]).sum()
    return LossOut(total / len(outs) if reduction == "mean" else total, outs[0].count)
