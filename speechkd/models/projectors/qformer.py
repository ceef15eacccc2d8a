"""Q-Former projector: a fixed number of learned queries attends to the whole clip (DiVA, arXiv 2410.02678; also in 2603.07025).

    S = W_o Decoder(Q + pos, cross-attend h)
DiVA: 448 queries, 32 layers of a Whisper-large decoder with its causal self-attention (`causal`, `init_from`). 2603.07025: 256.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from speechkd.models.projectors.cross_decoder import CrossDecoder, DecoderConfig, query_bank


class QFormerConfig(DecoderConfig):
    """`queries` positions, whatever the clip's length."""

    kind: Literal["qformer"] = "qformer"
    queries: int = Field(64, ge=1)


class QFormer(nn.Module):
    """L queries, one decoder, one Linear. Every frame given is attended, so none is dropped or padded: Q = L for any F."""

    Config = QFormerConfig

    def __init__(self, config: QFormerConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.init_from = config.init_from
        self.count = config.queries  # a parameter's shape says nothing while it is partitioned
        self.decoder = CrossDecoder(config, config.queries, width_in)
        self.queries = query_bank(config.queries, self.decoder.width)
        self.projection = nn.Linear(self.decoder.width, width_out)

    def positions(self, frames: int) -> int:
        """Q for F frames: L."""
        return self.count

    def forward(self, states_BFD: Tensor, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, L, E]; every clip's positions are computed, read or not."""
        queries_BQW = self.queries.expand(states_BFD.shape[0], -1, -1)
        out: Tensor = self.projection(self.decoder(queries_BQW, states_BFD))
        return out
