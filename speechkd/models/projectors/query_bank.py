"""Language-aware Q-Former projector: every language has its own queries, and a gate chooses among them (arXiv 2603.07025).

    B = { Q^(k) }_{k=1..K},  g = G(h),  pi = softmax(g)
    soft:  Q = sum_k pi_k Q^(k)
    hard:  Q = sum_k yST_k Q^(k),  yST = onehot(argmax g) + pi - stopgrad(pi)
    S = W_o Decoder(Q + pos, cross-attend h)
h: the encoder's states, G: the gate, K languages, L queries each; yST is the straight-through choice.
In training the true language replaces the gate's choice with probability p_tf (`language_gates.forcing_probability`: 1 to 0 on a cosine).
The paper: K = 6, L = 256, queries N(0, 0.02^2), decoder weights of Whisper-large-v3 (`init_from`). Reconstructed: the gates' sizes, the
softmax's temperature, p_tf's exact form and its draw for each clip, and that the decoder keeps DiVA's causal mask. The paper's baseline of
one set of queries is `qformer`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from speechkd.models.projectors import Gated, Hint
from speechkd.models.projectors.cross_decoder import CrossDecoder, DecoderConfig, query_bank
from speechkd.models.projectors.language_gates import AttentionGate, ConvGate, forced_choice, forcing_probability, hard_choice, soft_choice

GATES = {"attention": AttentionGate, "conv": ConvGate}


class QueryBankConfig(DecoderConfig):
    """`queries` positions, whatever the clip's length; `languages` as the metadata field `language` writes them."""

    GATED: ClassVar[bool] = True
    kind: Literal["query_bank"] = "query_bank"
    languages: list[str] = Field(min_length=2)
    queries: int = Field(256, ge=1)
    choice: Literal["soft", "hard"] = "hard"
    gate: Literal["attention", "conv"] = "attention"
    gate_hidden: int = Field(256, ge=1)
    forcing_share: float = Field(0.5, ge=0.0, le=1.0)
    """share of the steps over which p_tf falls from 1 to 0; 0 turns teacher forcing off"""
    causal: bool = True

    @field_validator("languages")
    @classmethod
    def _each_once(cls, languages: list[str]) -> list[str]:
        twice = sorted({name for name in languages if languages.count(name) > 1})
        if twice:
            raise ValueError(f"each language stands once, `{twice[0]}` stands more often")
        return languages

    def gate_languages(self) -> list[str]:
        """The block's `languages`."""
        return self.languages


class QueryBank(nn.Module):
    """K sets of L queries, a gate, one decoder, one Linear. Attends to every frame it is given: Q = L for any F.

    Gate and decoder run on every batch, even if every clip's language is forced: the sequence of module calls never depends on the batch.
    """

    Config = QueryBankConfig

    def __init__(self, config: QueryBankConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.init_from = config.init_from
        self.count, self.hard, self.forcing_share = config.queries, config.choice == "hard", config.forcing_share
        self.decoder = CrossDecoder(config, config.queries, width_in)
        self.gate = GATES[config.gate](width_in, config.gate_hidden, len(config.languages))
        self.bank_KQW = query_bank(len(config.languages), config.queries, self.decoder.width)
        self.projection = nn.Linear(self.decoder.width, width_out)

    def positions(self, frames: int) -> int:
        """Q for F frames: L."""
        return self.count

    def forward(self, states_BFD: Tensor, hint: Hint, read_A: Tensor | None = None) -> Gated:
        """[B, F, D] -> [B, L, E] and the gate's logits [B, K]; forced only where `hint` knows languages (training).

        Every clip's positions are computed, read or not.
        """
        gate_BK = self.gate(states_BFD)
        choice_BK = hard_choice(gate_BK) if self.hard else soft_choice(gate_BK)
        if hint.language_B is not None:
            choice_BK = forced_choice(choice_BK, hint.language_B, forcing_probability(hint.progress, self.forcing_share))
        queries_BQW = torch.einsum("bk,kqw->bqw", choice_BK.to(self.bank_KQW.dtype), self.bank_KQW)
        return Gated(self.projection(self.decoder(queries_BQW, states_BFD)), gate_BK)
