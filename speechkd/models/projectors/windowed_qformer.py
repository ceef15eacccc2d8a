"""Windowed Q-Former projector: the same few queries attend to one window after the other, as in SALMONN (arXiv 2310.13289).

    S_w = W_o Decoder(Q + pos, cross-attend h_{w k .. w k + k - 1})   for every window w
SALMONN: k = 17 Whisper frames (0.34 s), 1 query a window. It drops the frames after the last whole window (88 positions of 1,500 frames);
here they are a window of their own (89).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.stack_norm_mlp.rows import real_frames, scattered, stacked_rows
from speechkd.models.projectors.cross_decoder import CrossDecoder, DecoderConfig, query_bank


class WindowedQFormerConfig(DecoderConfig):
    """`window` frames become `queries` positions."""

    SUMS_LAYERS: ClassVar[bool] = True
    kind: Literal["windowed_qformer"] = "windowed_qformer"
    window: int = Field(17, ge=1)
    queries: int = Field(1, ge=1)


class WindowedQFormer(nn.Module):
    """The last partial window is padded and the padding masked out, never dropped: Q = queries * ceil(F / window)."""

    Config = WindowedQFormerConfig

    def __init__(self, config: WindowedQFormerConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.init_from = config.init_from
        self.window, self.count = config.window, config.queries
        self.decoder = CrossDecoder(config, config.queries, width_in)
        self.queries = query_bank(config.queries, self.decoder.width)
        self.projection = nn.Linear(self.decoder.width, width_out)

    def positions(self, frames: int) -> int:
        """Q for F frames: queries * ceil(F / window)."""
        return self.count * -(-frames // self.window)

    def forward(self, states_BFD: Tensor | LayerStates, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, queries * ceil(F / window), E], zero where nobody reads."""
        B, F, D = states_BFD.shape
        windows = -(-F // self.window)
        read_X = None if read_A is None else read_A[:: self.count] // self.count  # a window's positions are read together
        windows_XKD = stacked_rows(states_BFD, self.window, read_X).unflatten(1, (self.window, D))
        real_XK = real_frames(states_BFD, self.window, read_X)
        queries_XQW = self.queries.expand(windows_XKD.shape[0], -1, -1)
        out_XQE: Tensor = self.projection(self.decoder(queries_XQW, windows_XKD, real_XK))
        return scattered(out_XQE.flatten(1), read_X, B, windows).view(B, windows * self.count, out_XQE.shape[2])
