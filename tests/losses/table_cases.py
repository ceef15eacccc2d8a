"""Every line of the table of losses as a case, by its kind alone: a new loss is swept without a word here, but one for its equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkd.core.types import LossOut, TeacherSignals
from speechkd.kernels.logits import Head
from speechkd.losses import LOSSES, ClipLoss, HeadLoss, LayerLoss, Loss, Supervision
from speechkd.losses.base import ClipFacts, Clips, Layers
from tests.losses.equations import Array, ce, kl, mixture, softmax
from tests.losses.method_cases import (
    HEAD,
    LENGTHS,
    TEACHER_HEAD,
    B,
    Case,
    D,
    E,
    Given,
    S,
    Truth,
    array,
    both_lenses,
    cka_truth,
    draw,
    flat,
    heads,
    input_truth,
    layer_cka_truth,
    layers_row,
    lens_row,
    linear_contrastive_row,
    linear_cross_modal_row,
    owner,
    per_row,
    stored,
    stored_tail,
    topk_cross_modal_row,
    two_layers,
)


@dataclass
class Variant:
    """Keys of a recipe block, and the equation that it should follow (None: only the promises are checked)."""

    keys: dict[str, Any]
    truth: Truth | None
    own_width: bool = False
    """the teacher has the student's width"""


def linear_row(x: Array, g: Given, b: int, t: int) -> float:
    bridges = array(bridge_weights())
    parts = [np.mean((bridges[n] @ x[n * D : (n + 1) * D] - array(h[b, t])) ** 2) for n, h in enumerate((g.hidden, g.other_hidden))]
    return float(sum(parts))


def bridge_weights() -> Tensor:
    return draw(2, E, D, seed=55)


def sampled_row(x: Array, g: Given, b: int, t: int) -> float:
    p, q = softmax(array(g.logits[b, t]) / 2.0), softmax(array(HEAD) @ x / 2.0)
    kept = np.argsort(-p)[:4]
    return float(-4 * (p[kept] / p[kept].sum() * np.log(q[kept])).sum())


def language_truth(x: Array, g: Given) -> list[float]:
    return [ce(x[b], int(g.language[b])) for b in range(B) if LENGTHS[b] > 1]


TOPK_KEYS = {"temperature": 2.0, "t2_scale": True}
VARIANTS: dict[str, list[Variant]] = {
    "acoustic_snapshot": [
        Variant({}, layers_row("jsd", mean=True), True),
        Variant({"distance": "mse"}, layers_row("mse", mean=True), True),
    ],
    "attn_cka": [
        *(Variant({"mode": mode}, cka_truth(mode)) for mode in ("pre_w", "pre_sqrt_w", "weighted_hsic")),
        Variant({"attention": False}, lambda x, g: cka_truth("pre_w")(x, Given(**{**vars(g), "weights": torch.ones_like(g.weights)}))),
    ],
    "audio_kl": [Variant({}, per_row(lambda x, g, b, t: kl(*both_lenses(x, g.hidden[b, t], 2.0))))],
    "contrastive": [Variant({"alpha": 1.5}, per_row(linear_contrastive_row))],
    "cross_modal": [Variant({}, per_row(linear_cross_modal_row))],
    "divergence": [
        Variant({}, per_row(lambda x, g, b, t: kl(*both_lenses(x, g.hidden[b, t])))),
        Variant({"name": "jsd", "beta": 0.3}, per_row(lambda x, g, b, t: mixture("jsd", *both_lenses(x, g.hidden[b, t]), 0.3))),
        Variant({"name": "reverse_kl"}, per_row(lambda x, g, b, t: kl(*both_lenses(x, g.hidden[b, t])[::-1]))),
    ],
    "input_alignment": [Variant({"overlong": name}, input_truth(name)) for name in ("truncate", "drop")],
    "language_id": [Variant({}, language_truth)],
    "layer_wise": [
        Variant({}, per_row(lens_row)),
        Variant({"representation": "cka"}, layer_cka_truth),
        Variant({"representation": "linear", "distance": "mse"}, per_row(linear_row)),
        Variant({"representation": "hidden", "distance": "cosine"}, layers_row("cosine", mean=False), True),
    ],
    "output_alignment": [Variant({}, per_row(lambda x, g, b, t: float(np.linalg.norm(x - array(g.layers[0][b, t])))), True)],
    "response_ce": [Variant({}, per_row(lambda x, g, b, t: ce(array(HEAD) @ x, int(g.targets[b, t]))))],
    "sampled_kd": [Variant(TOPK_KEYS, per_row(sampled_row))],
    "topk_kl": [
        Variant(TOPK_KEYS, per_row(lambda x, g, b, t: 2 * (topk_cross_modal_row(x, g, b, t) - ce(array(HEAD) @ x, int(g.targets[b, t])))))
    ],
}
"""Default blocks unless something stands here."""


def supervision(x: Tensor, g: Given, own_width: bool, live: bool) -> Supervision:
    """Everything that a head loss may ask for, at the flat rows of the batch."""
    _, other, shared = heads(x)
    ids, logp = stored(g, 2.0)
    signals = TeacherSignals(
        ids_TK=ids,
        logp_TK=logp,
        tail_logp_T=stored_tail(g, 2.0),
        sampled_ids_TN=ids,
        sampled_weights_TN=logp.exp() / logp.exp().sum(1, keepdim=True),
    )
    return Supervision(
        mask_T=flat(g.mask),
        targets_T=flat(g.targets),
        signals=signals,
        teacher=Head(flat(g.layers[0] if own_width else g.hidden), other) if live else None,
        negative=Head(flat(g.other_hidden), other),
        shared_W=shared,
    )


def clips(x: Tensor, g: Given) -> tuple[Clips, Clips, ClipFacts]:
    """Student, teacher and facts: clips are the utterances, those of one position do not count."""
    projected = x if x.dim() == 3 else x.unsqueeze(1)
    facts = ClipFacts(keep_C=g.mask[:, 1], mask_CQ=g.mask, language_C=g.language, words_CND=g.text, words_mask_CN=g.text_mask)
    return Clips(projected_CQD=projected, gate_CK=projected[:, 0]), Clips(projected_CQD=g.hidden, attention_CQ=g.weights), facts


def run(part: Loss, x: Tensor, g: Given, config: Any, own_width: bool) -> LossOut:
    if isinstance(part, HeadLoss):
        return part.loss(Head(flat(x), HEAD.to(x)), supervision(x, g, own_width, "topk" not in config.needs().stored), config)
    if isinstance(part, ClipLoss):
        student, teacher, facts = clips(x, g)
        out = part.loss(student, teacher, facts, config)
        if not x.is_meta:
            assert out.count == part.keeps(facts, config).sum(), "the step divides by what `keeps` counts"
        return out
    states = two_layers(x)
    others = [flat(y) for y in (g.layers if own_width else (g.hidden, g.other_hidden))]
    student = Layers(states=states, lens=[Head(state, HEAD.to(x)) for state in states], owner_T=owner(x))
    teacher = Layers(states=others, lens=[Head(other, TEACHER_HEAD.to(x)) for other in others])
    learnt = part.part(config, 2, D, others[0].shape[1]) if part.part else None
    if learnt is not None:
        learnt = learnt.to(x)
        with torch.no_grad():
            for parameter, weight in zip(learnt.parameters(), bridge_weights(), strict=True):
                parameter.copy_(weight)
    return part.loss(student, teacher, flat(g.mask), heads(x)[2], config, learnt)


def table_cases() -> dict[str, Case]:
    out: dict[str, Case] = {}
    for name in LOSSES:
        for number, variant in enumerate(VARIANTS.get(name, [Variant({}, None)])):
            for impl in ("reference", "chunked") if "head" in LOSSES.get(name).Config().needs().student or not variant.keys else ("auto",):
                out[f"LOSSES[{name}]-{number}-{impl}"] = table_case(name, variant, impl)
    return out


def table_case(name: str, variant: Variant, impl: str) -> Case:
    part = LOSSES.get(name)
    impl_key: dict[str, Any] = {"impl": impl} if "impl" in part.Config.model_fields else {}
    config = part.Config(**impl_key, **variant.keys)
    width = 2 * D if isinstance(part, LayerLoss) else D
    shape = (B, D) if name == "language_id" else (B, S, width)
    return Case(shape, lambda x, g: run(part, x, g, config, variant.own_width), variant.truth)
