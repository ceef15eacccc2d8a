"""The Transformer decoder inside the Q-Former projectors: queries attend to encoder states. Built like a Whisper decoder.

Names and computation are those of transformers' Whisper decoder (pre-norm, GELU, keys without bias), so that its weights fit by name
(`whisper_init`). Differences: self-attention may be bidirectional, and keys and values come from states of any width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from speechkd.core.errors import InputError
from speechkd.kernels.autocast import autocast_on
from speechkd.models.projectors import ProjectorConfig
from speechkd.models.projectors.absorbed import MemoryLinear, absorbing_is_cheaper, attend

INIT_STD = 0.02


class DecoderConfig(ProjectorConfig):
    """Keys shared by the projectors that are made of queries and a decoder."""

    layers: int = Field(2, ge=1)
    width: int | None = Field(None, ge=1)
    """of the queries; None: the encoder's"""
    heads: int = Field(8, ge=1)
    hidden: int | None = Field(None, ge=1)
    """of the feed-forward part; None: 4 widths"""
    causal: bool = False
    """causal self-attention, as DiVA keeps it: later queries see earlier ones, the last see most"""
    init_from: str | None = None
    """folder or hub id of a Whisper model whose decoder's weights training starts from, where shapes fit"""

    def starts_from(self) -> str | None:
        """The block's `init_from`."""
        return self.init_from


class Attention(nn.Module):
    """Multi-head attention from [B, Q, W] to memory [B, M, D]: keys and values projected, or absorbed where that is cheaper."""

    def __init__(self, width: int, width_memory: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width, self.width_memory = heads, width, width_memory
        self.q_proj = nn.Linear(width, width)
        self.k_proj = MemoryLinear(width_memory, width, bias=False)
        self.v_proj = MemoryLinear(width_memory, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BQW: Tensor, memory_BMD: Tensor, causal: bool, mask_B11M: Tensor | None = None) -> Tensor:
        """[B, Q, W]; `mask_B11M` is added to scores. The four layers run in one order in either form."""
        q_BHQd = self._by_head(self.q_proj(x_BQW))
        if not causal and self._absorbs(q_BHQd, memory_BMD):
            keys_BXD = self.k_proj(q_BHQd * q_BHQd.shape[-1] ** -0.5, "queries").flatten(1, 2)
            pooled_BXD = attend(keys_BXD, memory_BMD, None if mask_B11M is None else mask_B11M.squeeze(1))
            out_BHQd = self.v_proj(pooled_BXD.unflatten(1, q_BHQd.shape[1:3]), "pooled")
        else:
            k_BHMd, v_BHMd = self._by_head(self.k_proj(memory_BMD)), self._by_head(self.v_proj(memory_BMD))
            out_BHQd = scaled_dot_product_attention(q_BHQd, k_BHMd, v_BHMd, mask_B11M, is_causal=causal)
        out: Tensor = self.out_proj(out_BHQd.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x_BXW: Tensor) -> Tensor:
        return x_BXW.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _absorbs(self, q_BHQd: Tensor, memory_BMD: Tensor) -> bool:
        plain = isinstance(self.k_proj, MemoryLinear) and isinstance(self.v_proj, MemoryLinear)  # LoRA's own part is not absorbed
        sizes = (q_BHQd.shape[2], memory_BMD.shape[1], self.width, self.width_memory, self.heads)
        return plain and not autocast_on(q_BHQd) and absorbing_is_cheaper(*sizes)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each normalised before and added after."""

    def __init__(self, width: int, width_memory: int, heads: int, hidden: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.self_attn = Attention(width, width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, width_memory, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x_BQW: Tensor, memory_BMD: Tensor, mask_B11M: Tensor | None) -> Tensor:
        """[B, Q, W] -> [B, Q, W]."""
        normed = self.self_attn_layer_norm(x_BQW)
        x_BQW = x_BQW + self.self_attn(normed, normed, self.causal)
        x_BQW = x_BQW + self.encoder_attn(self.encoder_attn_layer_norm(x_BQW), memory_BMD, False, mask_B11M)
        out: Tensor = x_BQW + self.fc2(gelu(self.fc1(self.final_layer_norm(x_BQW))))
        return out


class CrossDecoder(nn.Module):
    """Learned positions, layers, final norm: [B, Q, W] queries and [B, M, D] states -> [B, Q, W]."""

    def __init__(self, config: DecoderConfig, queries: int, width_in: int) -> None:
        super().__init__()
        self.width = config.width or width_in
        if self.width % config.heads:
            raise InputError(
                f"a projector of width {self.width} cannot have {config.heads} heads: they must divide it (student.projector.heads)"
            )
        self.heads, hidden = config.heads, config.hidden or 4 * self.width
        self.embed_positions = nn.Parameter(torch.empty(queries, self.width))
        self.layers = nn.ModuleList(DecoderLayer(self.width, width_in, config.heads, hidden, config.causal) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(self.width)
        nn.init.normal_(self.embed_positions, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, queries_BQW: Tensor, states_BMD: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """[B, Q, W]; `mask_BM` boolean, False where there is no state, at least one True in each row."""
        x_BQW = queries_BQW + self.embed_positions
        states_BMD = states_BMD.to(x_BQW.dtype)
        mask_B11M = None
        if mask_BM is not None:  # as attention adds it, once for all layers
            mask_B11M = states_BMD.new_zeros(mask_BM.shape).masked_fill(~mask_BM, -torch.inf)[:, None, None]
        for layer in self.layers:
            x_BQW = layer(x_BQW, states_BMD, mask_B11M)
        out: Tensor = self.layer_norm(x_BQW)
        return out


def query_bank(*shape: int) -> nn.Parameter:
    """Learned queries, N(0, 0.02^2) (arXiv 2603.07025; DiVA, arXiv 2410.02678)."""
    return nn.Parameter(INIT_STD * torch.randn(*shape))
