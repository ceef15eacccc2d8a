"""CKA beside its textbook form, the Q-Former beside transformers': `python -m tests.bench.cka_qformer [CASE ...] [--json]`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from speechkd.kernels.weighted_cka import weighted_cka
from speechkd.models.projectors import PROJECTORS, cross_decoder
from tests.bench.interleaved import Row, asked, compare, report

CKA_SHAPES = {"375 positions": ([375] * 4, 1024, 896), "1-30 s": ([13, 125, 250, 375], 1024, 896)}
FRAMES, STATES, WIDTH, HEADS, LAYERS = 1500, 1280, 768, 12, 2
Step = Callable[[], object]


def textbook(x_BTD: Tensor, y_BTE: Tensor, weights_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """diag(w) X, then H K H with an explicit centring matrix over valid positions."""
    valid_BT1 = mask_BT.unsqueeze(2).to(x_BTD.dtype)
    x_BTD, y_BTE = (given * (weights_BT.unsqueeze(2) * valid_BT1) for given in (x_BTD, y_BTE))
    h_BTT = torch.diag_embed(valid_BT1.squeeze(2)) - valid_BT1 @ valid_BT1.mT / valid_BT1.sum(1, keepdim=True)
    k_BTT, m_BTT = (h_BTT @ (given @ given.mT) @ h_BTT for given in (x_BTD, y_BTE))
    return (k_BTT * m_BTT).sum((1, 2)) / (k_BTT.square().sum((1, 2)) * m_BTT.square().sum((1, 2))).sqrt()


def cka_rows() -> list[Row]:
    """Value and the student's gradient, float32."""
    out = []
    for case, (lengths, D, E) in CKA_SHAPES.items():
        torch.manual_seed(0)
        B, T = len(lengths), max(lengths)
        x_BTD, y_BTE, weights_BT = torch.randn(B, T, D, requires_grad=True), torch.randn(B, T, E), torch.rand(B, T) + 0.1
        mask_BT = torch.arange(T) < torch.tensor(lengths)[:, None]

        def step(form: Callable[..., Tensor]) -> Step:
            return lambda: torch.autograd.grad(form(x_BTD, y_BTE, weights_BT, mask_BT).sum(), x_BTD)  # noqa: B023

        candidates = {
            "ours": step(weighted_cka),
            "textbook H K H": step(textbook),
            "centred features, autograd, padded": step(lambda *given: weighted_cka(*given, impl="reference")),
        }
        out += compare("CKA", f"{B} clips, {case}, widths {D} and {E}", "ours", candidates)
    return out


class HfQFormer(nn.Module):
    """BLIP-2's Q-Former of transformers with eager attention, cross attention in every layer, learned queries, a Linear behind."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        config = Blip2QFormerConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            cross_attention_frequency=1,
            encoder_hidden_size=STATES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
        self.inner: Any = Blip2QFormerModel(config)
        self.queries = nn.Parameter(torch.randn(1, queries, WIDTH) * 0.02)
        self.projection = nn.Linear(WIDTH, WIDTH)

    def forward(self, states_BFD: Tensor) -> Tensor:
        """[B, F, D] -> [B, Q, E]."""
        queries_BQW = self.queries.expand(states_BFD.shape[0], -1, -1)
        out: Tensor = self.projection(self.inner(query_embeds=queries_BQW, encoder_hidden_states=states_BFD).last_hidden_state)
        return out


def _step(module: nn.Module, states_BFD: Tensor, absorbing: Callable[..., bool]) -> Step:
    def step() -> None:
        kept, cross_decoder.absorbing_is_cheaper = cross_decoder.absorbing_is_cheaper, absorbing
        module.zero_grad()
        module(states_BFD).square().sum().backward()
        cross_decoder.absorbing_is_cheaper = kept

    return step


def qformer_rows(kind: str, queries: int, clips: int) -> list[Row]:
    """Forward and backward behind a frozen encoder, float32."""
    torch.manual_seed(0)
    part: Any = PROJECTORS.get(kind)
    keys = {"queries": queries, "layers": LAYERS, "width": WIDTH, "heads": HEADS}
    made, states_BFD = part(part.Config(kind=kind, **keys), STATES, WIDTH), torch.randn(clips, FRAMES, STATES)
    candidates = {
        "ours": _step(made, states_BFD, cross_decoder.absorbing_is_cheaper),
        "keys and values projected": _step(made, states_BFD, lambda *_: False),
        "absorbed": _step(made, states_BFD, lambda *_: True),
    }
    if kind == "qformer":
        candidates["transformers, eager"] = _step(HfQFormer(queries), states_BFD, lambda *_: False)
    case = f"{kind}, {queries} queries, {LAYERS} layers, {clips} clips of {FRAMES} frames"
    return compare("Q-Former", case, "ours", candidates)


SIZES = [("qformer", queries, clips) for queries, clips in ((1, 1), (4, 1), (4, 4), (16, 1), (64, 1))] + [("windowed_qformer", 1, 1)]
CASES: dict[str, Callable[[], list[Row]]] = {
    "cka": cka_rows,
    **{f"{kind}-{queries}x{clips}": partial(qformer_rows, kind, queries, clips) for kind, queries, clips in SIZES},
}


if __name__ == "__main__":
    report(asked(CASES))
