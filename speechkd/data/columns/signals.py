"""Teacher signals in a column: how each is configured, encoded to bytes and decoded into the tensors that losses take.

One row per response token, at the position that predicts it. A turn's signal is one tensor, named `<turn>.<signal>` in the member:
    topk     U8 [T, R]   ids (Elias-Fano), log-probs, tail; R is a function of k, vocabulary and bits
    sampled  U8 [X]      T counts of distinct ids, all ids at fixed width, then how often each was drawn (or its float16 weight)
    hidden   [T, L, E]   hidden states of the chosen layers
    attention [Q]        one number per audio position of the clip, for the whole turn
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from speechkd.core.config import Config
from speechkd.core.errors import DataError
from speechkd.core.types import TeacherSignals
from speechkd.data.columns import codec


class TopKStore(Config):
    """The K likeliest tokens of each position and the log of the mass outside them, at the capture temperature."""

    k: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    bits: Literal[8, 16, 32] = 8
    """bits per log-prob: `columns/codec.py` gives the error of 8 and 16; 32 is lossless float32"""

    def row_bytes(self, vocabulary: int) -> int:
        """Stored bytes of one response token."""
        return codec.id_row_bytes(self.k, vocabulary) + codec.logp_row_bytes(self.k, self.bits) + (4 if self.bits == 32 else 2)


class SampledStore(Config):
    """Random-sampling KD (arXiv 2503.16870): `draws` tokens of each position from q ~ p^proposal, with weights count * p / (q * draws)."""

    draws: int = Field(ge=1, le=255)
    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    proposal: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """1: draw from the teacher's own distribution; weights are then counts, stored exactly"""

    def row_bytes(self, vocabulary: int, different: float) -> float:
        """Stored bytes of one response token at which `different` distinct ids were drawn on average (at most `draws`)."""
        return 1 + different * (codec.id_bits(vocabulary) + self._weight_bits) / 8

    @property
    def _weight_bits(self) -> int:
        return codec.id_bits(self.draws) if self.proposal == 1.0 else 16


class HiddenStore(Config):
    """Hidden states of chosen layers: 0 is the embeddings, i the output of block i, the last one after the final norm (as transformers)."""

    layers: list[int] = Field(min_length=1)
    dtype: Literal["float16", "bfloat16", "float32"] = "bfloat16"

    @model_validator(mode="after")
    def _ascending(self) -> HiddenStore:
        if self.layers != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"layers must be ascending, distinct and not negative; given {self.layers}")
        return self

    def row_bytes(self, width: int) -> int:
        """Stored bytes of one response token of a teacher of `width`."""
        return len(self.layers) * width * getattr(torch, self.dtype).itemsize


class AttentionStore(Config):
    """The last layer's attention from the response to each of the clip's Q audio positions, mean over heads and response tokens
    (PL-Distill, arXiv 2602.01547): which part of the clip the teacher listens to. Only ratios within a clip matter."""

    dtype: Literal["float16", "float32"] = "float32"

    def clip_bytes(self, positions: float) -> float:
        """Stored bytes of one turn about a clip of `positions` audio positions."""
        return positions * getattr(torch, self.dtype).itemsize


class SignalsConfig(Config):
    """The signals stored beside the response; none by default."""

    topk: TopKStore | None = None
    sampled: SampledStore | None = None
    hidden: HiddenStore | None = None
    attention: AttentionStore | None = None

    @property
    def names(self) -> frozenset[str]:
        """Names of the declared signals."""
        return frozenset(name for name in type(self).model_fields if getattr(self, name) is not None)

    def temperatures(self) -> dict[str, float]:
        """Capture temperature of each declared signal that has one, by name."""
        stores = {"topk": self.topk, "sampled": self.sampled}
        return {name: store.temperature for name, store in stores.items() if store is not None}


def encode_topk(store: TopKStore, ids_TK: Tensor, logp_TK: Tensor, tail_logp_T: Tensor, vocabulary: int) -> Tensor:
    """Pack top-k rows (CPU tensors, ids of a row in any order) as uint8 [T, R]."""
    ids_TK, order_TK = ids_TK.sort(dim=1)
    tail_T1 = tail_logp_T.numpy().astype("<f4" if store.bits == 32 else "<f2").reshape(-1, 1)
    parts = [
        codec.pack_id_rows(ids_TK.numpy(), vocabulary),
        codec.pack_logp_rows(logp_TK.gather(1, order_TK).numpy(), store.bits),
        tail_T1.view(np.uint8),
    ]
    return torch.from_numpy(np.concatenate(parts, axis=1))


def encode_sampled(store: SampledStore, ids_TN: Tensor, weights_TN: Tensor, vocabulary: int) -> Tensor:
    """Pack `draws` ids per position and, if proposal is not 1, their weights p / q, as uint8 [X]."""
    different, found, often, weights = [], [], [], []
    for ids_N, weights_N in zip(ids_TN.numpy(), weights_TN.numpy(), strict=True):
        ids_U, first_U, count_U = np.unique(ids_N, return_index=True, return_counts=True)
        different.append(len(ids_U))
        found.append(ids_U)
        often.append(count_U)
        weights.append(weights_N[first_U] * count_U / store.draws)
    none = np.zeros(0, dtype=np.int64)
    ids_X = codec.pack_numbers(np.concatenate([none, *found]), codec.id_bits(vocabulary))
    if store.proposal == 1.0:
        tail_X = codec.pack_numbers(np.concatenate([none, *often]) - 1, store._weight_bits)
    else:
        tail_X = np.concatenate([none.astype("<f2"), *weights]).astype("<f2").view(np.uint8)
    return torch.from_numpy(np.concatenate([np.array(different, dtype=np.uint8), ids_X, tail_X]))


def decode(signals: SignalsConfig, wanted: Collection[str], tensors: Mapping[str, Tensor], tokens: int, vocabulary: int) -> TeacherSignals:
    """Decode the `wanted` signals of a turn of `tokens` response tokens, for the losses.

    Raises DataError for a tensor that is missing, not declared, or does not fit the column's settings.
    """
    if set(tensors) != signals.names:
        raise DataError(f"holds signals {sorted(tensors)}, must hold {sorted(signals.names)}")
    out: dict[str, Tensor] = {}
    if signals.topk is not None and "topk" in wanted:
        out |= _decode_topk(signals.topk, tensors["topk"], tokens, vocabulary)
    if signals.sampled is not None and "sampled" in wanted:
        out |= _decode_sampled(signals.sampled, tensors["sampled"], tokens, vocabulary)
    if signals.hidden is not None and "hidden" in wanted:
        out["hidden_TLE"] = _decode_hidden(signals.hidden, tensors["hidden"], tokens)
    if signals.attention is not None and "attention" in wanted:
        out["attention_CQ"] = _decode_attention(signals.attention, tensors["attention"])[None]
    return TeacherSignals(**out)


def _decode_topk(store: TopKStore, rows_TX: Tensor, tokens: int, vocabulary: int) -> dict[str, Tensor]:
    _must_be("topk", rows_TX, torch.uint8, (tokens, store.row_bytes(vocabulary)))
    rows = rows_TX.numpy()
    first = codec.id_row_bytes(store.k, vocabulary)
    end = first + codec.logp_row_bytes(store.k, store.bits)
    tail_T = np.ascontiguousarray(rows[:, end:]).view("<f4" if store.bits == 32 else "<f2")[:, 0].astype(np.float32)
    logp_TK = codec.unpack_logp_rows(rows[:, first:end], store.k, store.bits)
    if np.isnan(tail_T).any() or np.isnan(logp_TK).any() or (tail_T > 1e-3).any() or (logp_TK > 1e-3).any():
        raise DataError("signal `topk` holds log-probs that are NaN or above 0")
    ids_TK = codec.unpack_id_rows(np.ascontiguousarray(rows[:, :first]), store.k, vocabulary)
    return {"ids_TK": torch.from_numpy(ids_TK), "logp_TK": torch.from_numpy(logp_TK), "tail_logp_T": torch.from_numpy(tail_T)}


def _decode_sampled(store: SampledStore, data_X: Tensor, tokens: int, vocabulary: int) -> dict[str, Tensor]:
    if data_X.dtype != torch.uint8 or data_X.dim() != 1 or len(data_X) < tokens:
        raise DataError(f"signal `sampled` must be bytes of {tokens} tokens, is {data_X.dtype} {list(data_X.shape)}")
    data = data_X.numpy()
    different_T = data[:tokens].astype(np.int64)
    total, bits = int(different_T.sum()), codec.id_bits(vocabulary)
    middle = tokens + -(-total * bits // 8)
    if len(data) != middle + -(-total * store._weight_bits // 8) or (different_T < 1).any() or (different_T > store.draws).any():
        raise DataError(f"signal `sampled` has {len(data)} bytes, which does not fit its counts")
    ids_X = codec.unpack_numbers(data[tokens:middle], bits, total)
    if store.proposal == 1.0:
        weights_X = (codec.unpack_numbers(data[middle:], store._weight_bits, total) + 1) / store.draws
    else:
        weights_X = np.ascontiguousarray(data[middle:]).view("<f2").astype(np.float64)
    if (ids_X >= vocabulary).any() or not ((0 <= weights_X) & (weights_X < np.inf)).all():
        raise DataError("signal `sampled` holds an id outside the vocabulary or a weight that is not a finite number >= 0")
    kept_TN = np.arange(int(different_T.max(initial=1))) < different_T[:, None]
    ids_TN, weights_TN = np.zeros(kept_TN.shape, np.int32), np.zeros(kept_TN.shape, np.float32)
    ids_TN[kept_TN], weights_TN[kept_TN] = ids_X, weights_X
    return {"sampled_ids_TN": torch.from_numpy(ids_TN), "sampled_weights_TN": torch.from_numpy(weights_TN)}


def _decode_hidden(store: HiddenStore, states_TLE: Tensor, tokens: int) -> Tensor:
    _must_be("hidden", states_TLE, getattr(torch, store.dtype), (tokens, len(store.layers), states_TLE.shape[-1]))
    return states_TLE


def _decode_attention(store: AttentionStore, weights_Q: Tensor) -> Tensor:
    _must_be("attention", weights_Q, getattr(torch, store.dtype), (weights_Q.numel(),))
    wide_Q = weights_Q.float()
    if not ((0 <= wide_Q) & (wide_Q <= 1.001)).all():
        raise DataError("signal `attention` holds weights outside 0 .. 1")
    return wide_Q


def _must_be(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise DataError(f"signal `{name}` must be {dtype} {list(shape)}, is {tensor.dtype} {list(tensor.shape)}")
