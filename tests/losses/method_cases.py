"""Every loss as (function, its equation, a student that matches its teacher), on one padded batch of unequal utterances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechkd.core.types import LossOut, TeacherSignals
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Head, Plain
from speechkd.losses import divergences
from speechkd.losses.acoustic_snapshot import acoustic_snapshot
from speechkd.losses.attn_cka import attn_cka_loss
from speechkd.losses.audio_kl import Config as AudioKl
from speechkd.losses.audio_kl import audio_kl
from speechkd.losses.base import Supervision
from speechkd.losses.contrastive import Config as Contrastive
from speechkd.losses.contrastive import contrastive_kd
from speechkd.losses.cross_modal import Config as CrossModal
from speechkd.losses.cross_modal import cross_modal_kd
from speechkd.losses.input_alignment import input_alignment
from speechkd.losses.language_id import language_id
from speechkd.losses.layer_wise import layer_cka, layer_states, logit_lens
from speechkd.losses.output_alignment import output_alignment
from speechkd.losses.response_ce import LOSS as RESPONSE_CE
from speechkd.losses.response_ce import response_ce
from speechkd.losses.states import state_distance
from speechkd.losses.topk_kd import LOSS as TOPK_KL
from speechkd.losses.topk_kd import topk_kl
from tests.losses.equations import Array, ce, cka, cosine, js, kl, mixture, softmax

B, S, D, E, V = 4, 6, 5, 7, 23  # utterances, positions, widths, vocabulary
LENGTHS = (6, 3, 2, 1)
TEXT_LENGTHS = (2, 3, 5, 0)


@dataclass
class Given:
    """Teacher's side of a batch of utterances; every tensor's first dimension is B."""

    mask: Tensor
    logits: Tensor
    other_logits: Tensor
    hidden: Tensor
    other_hidden: Tensor
    layers: tuple[Tensor, Tensor]
    targets: Tensor
    weights: Tensor
    text: Tensor
    text_mask: Tensor
    language: Tensor

    def at(self, rows: slice) -> Given:
        values = {name: value for name, value in vars(self).items()}
        return Given(**{n: tuple(x[rows] for x in v) if isinstance(v, tuple) else v[rows] for n, v in values.items()})

    def to(self, where: torch.device | torch.dtype) -> Given:
        def move(x: Tensor) -> Tensor:
            return x.to(where) if isinstance(where, torch.device) or x.is_floating_point() else x

        return Given(**{n: tuple(move(x) for x in v) if isinstance(v, tuple) else move(v) for n, v in vars(self).items()})


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HEAD, TEACHER_HEAD = draw(V, D, seed=1), draw(V + 4, E, seed=2)
SHARED = torch.arange(V) != 3


def given() -> Given:
    g = torch.Generator().manual_seed(0)
    return Given(
        mask=torch.arange(S)[None] < torch.tensor(LENGTHS)[:, None],
        logits=draw(B, S, V, seed=10, scale=2.0),
        other_logits=draw(B, S, V, seed=11),
        hidden=draw(B, S, E, seed=12),
        other_hidden=draw(B, S, E, seed=13),
        layers=(draw(B, S, D, seed=14), draw(B, S, D, seed=15)),
        targets=torch.randint(V, (B, S), generator=g),
        weights=torch.rand(B, S, generator=g, dtype=torch.float64),
        text=draw(B, 5, D, seed=16),
        text_mask=torch.arange(5)[None] < torch.tensor(TEXT_LENGTHS)[:, None],
        language=torch.randint(D, (B,), generator=g),
    )


def flat(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def heads(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Student's head, teacher's head and the shared ids, where and as wide as `x`."""
    return HEAD.to(x), TEACHER_HEAD.to(x), SHARED.to(x.device)


Loss = Callable[[Tensor, Given], LossOut]
Truth = Callable[[Array, Given], list[float]]


@dataclass
class Case:
    """`loss(student, given)`; `truth` lists one value for each unit that counts; `equal` is a student that matches its teacher."""

    shape: tuple[int, ...]
    loss: Loss
    truth: Truth | None
    equal: Callable[[Given], Tensor] | None = None
    given_equal: Callable[[Given], Given] = lambda s: s

    def student(self) -> Tensor:
        return draw(*self.shape, seed=99).requires_grad_()


def rows(g: Given, value: Callable[[int, int], float]) -> list[float]:
    return [value(b, t) for b in range(B) for t in range(LENGTHS[b])]


def per_row(value: Callable[[Array, Given, int, int], float]) -> Truth:
    return lambda x, g: rows(g, lambda b, t: value(x[b, t], g, b, t))


def array(x: Tensor) -> Array:
    return np.asarray(x.detach().numpy(), dtype=np.float64)


def both_lenses(x: Array, h: Tensor, tau: float = 1.0) -> tuple[Array, Array]:
    """Teacher's and student's distributions over the shared ids, from hidden states."""
    shared = array(SHARED).astype(bool)
    p = softmax((array(TEACHER_HEAD) @ array(h))[:V][shared] / tau)
    return p, softmax((array(HEAD) @ x)[shared] / tau)


def cross_modal_row(x: Array, g: Given, b: int, t: int) -> float:
    z = array(g.logits[b, t])
    return ce(x, int(g.targets[b, t])) + 0.5 * 2.0**2 * kl(softmax(z / 2), softmax(x / 2))


def linear_cross_modal_row(x: Array, g: Given, b: int, t: int) -> float:
    p, q = both_lenses(x, g.hidden[b, t], 2.0)
    return ce(array(HEAD) @ x, int(g.targets[b, t])) + 0.5 * 2.0**2 * kl(p, q)


def topk_cross_modal_row(x: Array, g: Given, b: int, t: int) -> float:
    p = softmax(array(g.logits[b, t]) / 2)
    q, kept = softmax(array(HEAD) @ x / 2), np.argsort(-p)[:4]
    bucket = [np.append(a[kept], 1 - a[kept].sum()) for a in (p, q)]
    return ce(array(HEAD) @ x, int(g.targets[b, t])) + 0.5 * 2.0**2 * kl(*bucket)


def stored(g: Given, tau: float) -> tuple[Tensor, Tensor]:
    """The teacher's 4 likeliest ids and their log-probs at a capture temperature."""
    top = torch.log_softmax(flat(g.logits) / tau, 1).topk(4, 1)
    return top.indices, top.values


def stored_tail(g: Given, tau: float) -> Tensor:
    logp = torch.log_softmax(flat(g.logits) / tau, 1)
    return logp.scatter(1, logp.topk(4, 1).indices, -torch.inf).logsumexp(1)


def stored_cross_modal(hidden_TD: Tensor, head_VD: Tensor, supervision: Supervision) -> LossOut:
    """The two losses of a recipe that together are cross-modal distillation from stored log-probs."""
    student = Head(hidden_TD, head_VD)
    ce = RESPONSE_CE.loss(student, supervision, RESPONSE_CE.Config())
    kl = TOPK_KL.loss(student, supervision, TOPK_KL.Config(temperature=2.0, t2_scale=True))
    return LossOut(ce.total + 0.5 * kl.total, ce.count)


def topk_cross_modal(x: Tensor, g: Given) -> LossOut:
    ids, logp = stored(g, 2.0)
    signals = TeacherSignals(ids_TK=ids, logp_TK=logp, tail_logp_T=stored_tail(g, 2.0))
    given = Supervision(mask_T=flat(g.mask), targets_T=flat(g.targets), signals=signals)
    return stored_cross_modal(flat(x), HEAD.to(x), given)


def contrastive_row(x: Array, g: Given, b: int, t: int) -> float:
    pos, neg = array(g.logits[b, t]), array(g.other_logits[b, t])
    target = pos + 1.5 * (pos - neg)
    return 0.7 * kl(softmax(target / 2), softmax(x / 2)) + 0.3 * ce(x, int(g.targets[b, t]))


def linear_contrastive_row(x: Array, g: Given, b: int, t: int) -> float:
    head, ours, shared = array(TEACHER_HEAD), array(HEAD) @ x, array(SHARED).astype(bool)
    pos, neg = head @ array(g.hidden[b, t]), head @ array(g.other_hidden[b, t])
    target = (pos + 1.5 * (pos - neg))[:V][shared]
    return 0.7 * kl(softmax(target / 2), softmax(ours[shared] / 2)) + 0.3 * ce(ours, int(g.targets[b, t]))


def audio_row(x: Array, g: Given, b: int, t: int) -> float:
    return kl(softmax(array(g.logits[b, t]) / 2), softmax(x / 2))


def lens_row(x: Array, g: Given, b: int, t: int) -> float:
    pairs = [both_lenses(x[:D], g.hidden[b, t]), both_lenses(x[D:], g.other_hidden[b, t])]
    return js(*pairs[0]) + js(*pairs[1])


def two_layers(x: Tensor) -> list[Tensor]:
    return [flat(x[..., :D]), flat(x[..., D:])]


def owner(x: Tensor) -> Tensor:
    """The utterance of each flat row."""
    return torch.arange(x.shape[0], device=x.device).repeat_interleave(S)


def lens(x: Tensor, g: Given, impl: str) -> LossOut:
    ours, other, shared = heads(x)
    teacher = [flat(g.hidden), flat(g.other_hidden)]
    how = Divergence(name="jsd", shared_W=shared)
    return logit_lens([Head(h, ours) for h in two_layers(x)], [Head(h, other) for h in teacher], flat(g.mask), how, impl=impl)


def distance_of(name: str, a: Array, b: Array) -> float:
    if name == "jsd":
        return js(softmax(a), softmax(b))
    return cosine(a, b) if name == "cosine" else float(np.mean((a - b) ** 2))


def layers_row(name: str, mean: bool) -> Truth:
    def value(x: Array, g: Given, b: int, t: int) -> float:
        parts = [distance_of(name, x[:D], array(g.layers[0][b, t])), distance_of(name, x[D:], array(g.layers[1][b, t]))]
        return sum(parts) / (len(parts) if mean else 1)

    return per_row(value)


def cka_truth(mode: str) -> Truth:
    def values(x: Array, g: Given) -> list[float]:
        return [1 - cka(x[b, :n], array(g.hidden[b, :n]), array(g.weights[b, :n]), mode) for b, n in enumerate(LENGTHS) if n >= 2]

    return values


def layer_cka_truth(x: Array, g: Given) -> list[float]:
    one = np.ones(S)
    pairs = [(x[..., :D], array(g.hidden)), (x[..., D:], array(g.other_hidden))]
    each = [sum(1 - cka(s[b, :n], t[b, :n], one[:n], "pre_w") for s, t in pairs) if n >= 2 else 0.0 for b, n in enumerate(LENGTHS)]
    return rows(g, lambda b, t: each[b])


def input_truth(overlong: str) -> Truth:
    def values(x: Array, g: Given) -> list[float]:
        out: list[float] = []
        for b, (positions, tokens) in enumerate(zip(LENGTHS, TEXT_LENGTHS, strict=True)):
            y = array(g.text[b, :tokens])
            if overlong == "drop" and tokens > positions:
                continue
            y = y[max(0, tokens - positions) :]
            if not len(y):
                continue
            tail = x[b, :positions][positions - len(y) :]
            distances = [float(np.sqrt(((s - e) ** 2).sum())) for s, e in zip(tail, y, strict=True)]
            out.append(sum(distances) / len(distances))
        return out

    return values


def aligned_text(g: Given) -> Tensor:
    """Projected positions whose last N are the transcript."""
    out = draw(B, S, D, seed=98)
    for b, (positions, tokens) in enumerate(zip(LENGTHS, TEXT_LENGTHS, strict=True)):
        n = min(positions, tokens)
        out[b, positions - n : positions] = g.text[b, tokens - n : tokens]
    return out


def first_rows(g: Given) -> Given:
    """A teacher of the student's own width, for what can be equal to it."""
    return Given(**{**vars(g), "hidden": g.layers[0], "other_hidden": g.layers[1]})


def cases() -> dict[str, Case]:
    out = {
        "cross_modal": Case(
            (B, S, V),
            lambda x, g: cross_modal_kd(Plain(flat(x)), Plain(flat(g.logits)), flat(g.targets), flat(g.mask), CrossModal()),
            per_row(cross_modal_row),
        ),
        "contrastive": Case(
            (B, S, V),
            lambda x, g: contrastive_kd(
                Plain(flat(x)), Plain(flat(g.logits)), Plain(flat(g.other_logits)), flat(g.targets), flat(g.mask), Contrastive(alpha=1.5)
            ),
            per_row(contrastive_row),
        ),
        "audio_kl": Case(
            (B, S, V),
            lambda x, g: audio_kl(Plain(flat(x)), Plain(flat(g.logits)), flat(g.mask), AudioKl()),
            per_row(audio_row),
            lambda g: g.logits,
        ),
        "topk_cross_modal": Case((B, S, D), topk_cross_modal, per_row(topk_cross_modal_row)),
        "layer_cka": Case(
            (B, S, 2 * D),
            lambda x, g: layer_cka(two_layers(x), [flat(g.hidden), flat(g.other_hidden)], flat(g.mask), owner(x)),
            layer_cka_truth,
            lambda g: torch.cat([3 * g.hidden.flip(2) - 1, g.other_hidden], 2),  # CKA sees neither rotation nor scale nor shift
            first_rows,
        ),
        "acoustic_snapshot": Case(
            (B, S, 2 * D),
            lambda x, g: acoustic_snapshot(two_layers(x), [flat(y) for y in g.layers], flat(g.mask)),
            layers_row("jsd", mean=True),
            lambda g: torch.cat(g.layers, 2),
        ),
        "output_alignment": Case(
            (B, D),
            lambda x, g: output_alignment(x, g.layers[0][:, 0], g.mask[:, 1]),
            lambda x, g: [float(np.linalg.norm(x[b] - array(g.layers[0][b, 0]))) for b in range(3)],
            lambda g: g.layers[0][:, 0],
        ),
        "language_id": Case(
            (B, D), lambda x, g: language_id(x, g.language, g.mask[:, 1]), lambda x, g: [ce(x[b], int(g.language[b])) for b in range(3)]
        ),
    }
    for name in ("jsd", "mse", "cosine"):
        out[f"layer_states-{name}"] = Case(
            (B, S, 2 * D),
            lambda x, g, name=name: layer_states(two_layers(x), [flat(y) for y in g.layers], flat(g.mask), name),  # type: ignore[misc]
            layers_row(name, mean=False),
            lambda g: torch.cat(g.layers, 2),
        )
        out[f"state_distance-{name}"] = Case(
            (B, S, D),
            lambda x, g, name=name: state_distance(flat(x), flat(g.layers[0]), flat(g.mask), name),  # type: ignore[misc]
            per_row(lambda x, g, b, t, name=name: distance_of(name, x, array(g.layers[0][b, t]))),  # type: ignore[misc]
            lambda g: g.layers[0],
        )
    for mode in ("pre_w", "pre_sqrt_w", "weighted_hsic"):
        out[f"attn_cka-{mode}"] = Case(
            (B, S, D),
            lambda x, g, mode=mode: attn_cka_loss(x, g.hidden, g.weights, g.mask, mode),  # type: ignore[misc]
            cka_truth(mode),
            lambda g: -2 * g.hidden,
            first_rows,
        )
    for overlong in ("truncate", "drop"):
        out[f"input_alignment-{overlong}"] = Case(
            (B, S, D),
            lambda x, g, o=overlong: input_alignment(x, g.mask, g.text, g.text_mask, o),  # type: ignore[misc]
            input_truth(overlong),
            aligned_text,
        )
    for impl in ("reference", "chunked"):
        out |= head_cases(impl)
    return out | divergence_cases() | topk_cases()


def divergence_cases() -> dict[str, Case]:
    out = {
        "response_ce": Case(
            (B, S, V),
            lambda x, g: response_ce(Plain(flat(x)), flat(g.targets), flat(g.mask)),
            per_row(lambda x, g, b, t: ce(x, int(g.targets[b, t]))),
        )
    }
    keys: dict[str, dict[str, float]] = {
        "forward_kl": {},
        "reverse_kl": {},
        "jsd": {"beta": 0.3},
        "skew_kl": {"alpha": 0.1},
        "skew_reverse_kl": {"alpha": 0.1},
    }
    return out | {name: divergence_case(name, more) for name, more in keys.items()}


def divergence_case(name: str, more: dict[str, float]) -> Case:
    def run(x: Tensor, g: Given) -> LossOut:
        out: LossOut = getattr(divergences, name)(flat(x), flat(g.logits), flat(g.mask), 1.7, **more)
        return out

    def value(x: Array, g: Given, b: int, t: int) -> float:
        return mixture(name, softmax(array(g.logits[b, t]) / 1.7), softmax(x / 1.7), sum(more.values()))

    return Case((B, S, V), run, per_row(value), lambda g: g.logits)


def topk_cases() -> dict[str, Case]:
    def run(x: Tensor, g: Given, tail: str) -> LossOut:
        return topk_kl(flat(x), *stored(g, 1.7), flat(g.mask), stored_tail(g, 1.7), 1.7, tail)

    def value(x: Array, g: Given, b: int, t: int, tail: str) -> float:
        p, q = softmax(array(g.logits[b, t]) / 1.7), softmax(x / 1.7)
        kept = np.argsort(-p)[:4]
        if tail == "renormalise":
            return kl(p[kept] / p[kept].sum(), q[kept] / q[kept].sum())
        if tail == "bucket":
            p, q = (np.append(a[kept], 1 - a[kept].sum()) for a in (p, q))
            return kl(p, q)
        return kl(p[kept], q[kept])

    return {
        f"topk_kl-{tail}": Case(
            (B, S, V),
            lambda x, g, tail=tail: run(x, g, tail),  # type: ignore[misc]
            per_row(lambda x, g, b, t, tail=tail: value(x, g, b, t, tail)),  # type: ignore[misc]
            None if tail == "ignore" else lambda g: g.logits,
        )
        for tail in ("bucket", "renormalise", "ignore")
    }


def head_cases(impl: str) -> dict[str, Case]:
    def cross(x: Tensor, g: Given) -> LossOut:
        ours, other, shared = heads(x)
        student, teacher = Head(flat(x), ours), Head(flat(g.hidden), other)
        return cross_modal_kd(student, teacher, flat(g.targets), flat(g.mask), CrossModal(impl=impl), shared)

    def contrast(x: Tensor, g: Given) -> LossOut:
        ours, other, shared = heads(x)
        positive, negative = Head(flat(g.hidden), other), Head(flat(g.other_hidden), other)
        config = Contrastive(alpha=1.5, impl=impl)
        return contrastive_kd(Head(flat(x), ours), positive, negative, flat(g.targets), flat(g.mask), config, shared)

    def audio(x: Tensor, g: Given) -> LossOut:
        ours, other, shared = heads(x)
        return audio_kl(Head(flat(x), ours), Head(flat(g.hidden), other), flat(g.mask), AudioKl(impl=impl), shared)

    return {
        f"linear_cross_modal-{impl}": Case((B, S, D), cross, per_row(linear_cross_modal_row)),
        f"linear_contrastive-{impl}": Case((B, S, D), contrast, per_row(linear_contrastive_row)),
        f"linear_audio_kl-{impl}": Case((B, S, D), audio, per_row(lambda x, g, b, t: kl(*both_lenses(x, g.hidden[b, t], 2.0)))),
        f"logit_lens-{impl}": Case((B, S, 2 * D), lambda x, g: lens(x, g, impl), per_row(lens_row)),
    }
