"""Layer-wise distillation from a text teacher of another depth and width (arXiv 2509.18579).

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
from pydantic import Field, model_validator
from torch import Tensor, nn

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut
from speechkd.kernels.linear_kl import divergence_from
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Head, Logits
from speechkd.losses.base import KernelConfig, LayerConfig, LayerLoss, Layers, given
from speechkd.losses.flat_cka import flat_cka
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
    student: Sequence[Logits],
    teacher: Sequence[Logits],
    mask_T: Tensor,
    divergence: Divergence,
    reduction: Reduction = "sum",
    impl: str = "auto",
) -> LossOut:
    """Divergence of what both models' heads read in mapped pairs of layers; count is rows, so the value is the sum (or mean) of L_layer,i.

    Args:
        student, teacher: the mapped layers, pair by pair, each with its model's head. A head's states stand AFTER the model's own final
            norm; transformers' last entry of `hidden_states` is normed already, the others are not. The teacher gets no gradient.
        mask_T: bool; False rows change neither total nor count.
    Raises InputError for lists of different or no length, and as `kernels.linear_kl`.
    """
    _check_pairs(student, teacher)
    students, teachers = _one_head(student), _one_head(teacher)
    if students is None or teachers is None:
        return _over_layers([divergence_from(s, t, mask_T, divergence, impl) for s, t in zip(student, teacher, strict=True)], reduction)
    total = divergence_from(students, teachers, mask_T.repeat(len(student)), divergence, impl).total
    return LossOut(total / len(student) if reduction == "mean" else total, mask_T.to(total.dtype).sum())


def _one_head(layers: Sequence[Logits]) -> Head | None:
    """All layers' rows under one head, so that its weight is read once for all; None where they are not of one head."""
    heads = [layer for layer in layers if isinstance(layer, Head)]
    if len(heads) < len(layers) or any(head.weight_VD is not heads[0].weight_VD or head.softcap != heads[0].softcap for head in heads):
        return None
    return heads[0]._replace(hidden_TD=torch.cat([head.hidden_TD for head in heads]))


def layer_states(
    student_LTD: Sequence[Tensor], teacher_LTD: Sequence[Tensor], mask_T: Tensor, distance: str = "cosine", reduction: Reduction = "sum"
) -> LossOut:
    """`states.state_distance` over mapped pairs of layers of one width; count is rows. Raises InputError as it, and for unpaired lists."""
    _check_pairs(student_LTD, teacher_LTD)
    outs = [state_distance(s, t, mask_T, distance) for s, t in zip(student_LTD, teacher_LTD, strict=True)]
    return _over_layers(outs, reduction)


def layer_cka(
    student_LTD: Sequence[Tensor], teacher_LTE: Sequence[Tensor], mask_T: Tensor, owner_T: Tensor, reduction: Reduction = "sum"
) -> LossOut:
    """`flat_cka.flat_cka` (1 - CKA within each utterance) over mapped pairs of layers, widths may differ; count is rows. Raises as it."""
    _check_pairs(student_LTD, teacher_LTE)
    outs = [flat_cka(s, t, mask_T, owner_T) for s, t in zip(student_LTD, teacher_LTE, strict=True)]
    return _over_layers(outs, reduction)


class LayerBridges(nn.Module):
    """One learned Linear (no bias) per mapped pair, student width -> teacher width; all run in every call, in the order of the map."""

    def __init__(self, pairs: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.bridges = nn.ModuleList(nn.Linear(width_in, width_out, bias=False) for _ in range(pairs))

    def forward(self, student_LTD: Sequence[Tensor]) -> list[Tensor]:
        """L states [T, D] -> L states [T, E]."""
        return [bridge(states_TD) for bridge, states_TD in zip(self.bridges, student_LTD, strict=True)]


def _check_pairs(student: Sequence[object], teacher: Sequence[object]) -> None:
    if not student or len(student) != len(teacher):
        raise InputError(f"layers must come in pairs, given {len(student)} of the student and {len(teacher)} of the teacher")


def _over_layers(outs: Sequence[LossOut], reduction: Reduction) -> LossOut:
    total = torch.stack([out.total for out in outs]).sum()
    return LossOut(total / len(outs) if reduction == "mean" else total, outs[0].count)


LENS = ("logit_lens",)
USES = {"divergence": LENS, "temperature": LENS, "impl": LENS, "distance": ("linear", "hidden")}
"""Keys that only some representations have"""


class Config(LayerConfig, KernelConfig):
    """Recipe block of `layer_wise`."""

    weight: float = Field(default=0.05, ge=0.0, allow_inf_nan=False)
    every: int | None = Field(default=None, ge=1)
    """1 (where neither it nor `map` is given): each student layer; n: each n-th (the paper's skip on 28 layers: 7)"""
    map: list[tuple[int, int]] | None = None
    """pairs (student layer, teacher layer), from 1, in place of the proportional map"""
    representation: Literal["logit_lens", "linear", "hidden", "cka"] = "logit_lens"
    """`linear` learns one map a layer to the teacher's width; `hidden` needs equal widths"""
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"] | None = None
    """logit_lens only; jsd"""
    temperature: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """logit_lens only; 1"""
    distance: Literal["jsd", "mse", "cosine"] | None = None
    """linear and hidden only; cosine"""
    reduction: Reduction = "sum"
    """over layers"""

    @model_validator(mode="after")
    def _one_map(self) -> Config:
        if self.map is not None and self.every is not None:
            raise ValueError("`every` says nothing beside `map`, which names each pair of layers: give one of them")
        return self

    @model_validator(mode="after")
    def _keys_of_the_representation(self) -> Config:
        given = {key: getattr(self, key) is not None for key in ("divergence", "temperature", "distance")} | {"impl": self.impl != "auto"}
        for key, names in USES.items():
            if given[key] and self.representation not in names:
                raise ValueError(f"representation `{self.representation}` does not use `{key}`; those that do: {', '.join(names)}")
        return self

    def pairs(self, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
        """(student layer, teacher layer), from 1. Raises InputError for a layer that one of them does not have."""
        pairs = layer_map(student_layers, teacher_layers, self.every or 1) if self.map is None else tuple(self.map)
        check_layer_map(pairs, student_layers, teacher_layers)
        return list(pairs)

    @property
    def lens(self) -> bool:
        """Whether the loss reads layers through norm and head."""
        return self.representation == "logit_lens"


def _loss(student: Layers, teacher: Layers, mask_T: Tensor, shared_W: Tensor | None, config: Config, part: nn.Module | None) -> LossOut:
    if config.representation == "logit_lens":
        how = Divergence(name=config.divergence or "jsd", temperature=config.temperature or 1.0, shared_W=shared_W)
        lens = given(teacher.lens or None, "layer_wise", "dense")
        return logit_lens(student.lens, lens, mask_T, how, config.reduction, config.impl)
    if config.representation == "cka":
        owner_T = given(student.owner_T, "layer_wise", "hidden")
        return layer_cka(student.states, teacher.states, mask_T, owner_T, config.reduction)
    states = student.states if part is None else part(student.states)
    return layer_states(states, teacher.states, mask_T, config.distance or "cosine", config.reduction)


def _part(config: Config, pairs: int, width_in: int, width_out: int) -> nn.Module | None:
    return LayerBridges(pairs, width_in, width_out) if config.representation == "linear" else None


LOSS = LayerLoss(Config=Config, loss=_loss, part=_part)
