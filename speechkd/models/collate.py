"""Examples to one padded micro-batch. All index arithmetic happens here, on the CPU, so that the step itself never waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from speechkd.core.types import Batch


@dataclass(frozen=True, slots=True)
class Row:
    """One example ready for collation: ids around the audio span, and the response (empty when it is to be generated)."""

    before: Sequence[int]
    after: Sequence[int]
    response: Sequence[int]
    samples_T: np.ndarray | None
    """16 kHz mono float32; None for a text-only example"""
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    """teacher signals by `losses.Supervision` field, one row per response token"""


@dataclass(frozen=True, slots=True)
class Collator:
    """Rows -> Batch. `features`: clips -> [C, M, 2F]; `frames`: samples -> valid F; `positions`: F -> Q (the projector's contract)."""

    features: Callable[[Sequence[np.ndarray]], Tensor]
    frames: Callable[[int], int]
    positions: Callable[[int], int]
    window_frames: int
    sample_rate: int = 16_000
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    """of each signal that batches carry, one row [1, ...] of zeros: stands in where a batch, or an example in it, has none"""

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate; no rows give an empty micro-batch (dummy clip, dummy token, count 0)."""
        clips = [row.samples_T for row in rows if row.samples_T is not None]
        window_Q = self.positions(self.window_frames)
        sequences, audio_to, audio_from, response = [], [], [], []
        clip = 0
        for row in rows:
            spots = 0 if row.samples_T is None else self.positions(self.frames(row.samples_T.size))
            sequences.append(([*row.before, *[0] * spots, *row.after, *row.response], len(row.before), spots))
        length = max((len(ids) for ids, _, _ in sequences), default=2)
        ids_BS = torch.zeros(max(1, len(rows)), length, dtype=torch.long)
        mask_BS = torch.zeros_like(ids_BS)
        for index, (row, (ids, start, spots)) in enumerate(zip(rows, sequences, strict=True)):
            ids_BS[index, : len(ids)] = torch.tensor(ids)
            mask_BS[index, : len(ids)] = 1
            origin = index * length
            if spots:
                audio_to.append(torch.arange(spots) + origin + start)
                audio_from.append(torch.arange(spots) + clip * window_Q)
                clip += 1
            first = len(ids) - len(row.response)
            response.append(torch.arange(len(row.response)) + origin + first)
        supervised = sum(len(positions) for positions in response)
        if not rows:
            mask_BS[:] = 1
        if not supervised:  # a dummy position keeps shapes and module calls alike on every rank
            response = [torch.ones(1, dtype=torch.long)]
        none = torch.zeros(0, dtype=torch.long)
        return Batch(
            features_BMT=self.features(clips or [np.zeros(1, np.float32)]),
            ids_BS=ids_BS,
            mask_BS=mask_BS,
            audio_to_A=torch.cat(audio_to) if audio_to else none,
            audio_from_A=torch.cat(audio_from) if audio_from else none,
            response_T=torch.cat(response),
            mask_T=torch.full((max(1, supervised),), supervised > 0),
            signals={name: self._signal(name, zero, rows) for name, zero in self.signals.items()},
            examples=len(rows),
            seconds=sum(c.size for c in clips) / self.sample_rate,
        )

    def _signal(self, name: str, zero: Tensor, rows: Sequence[Row]) -> Tensor:
        """Rows of all examples under each other, narrower ones (fewer sampled ids) filled up with zeros."""
        parts = [row.signals.get(name, zero.expand(len(row.response), *zero.shape[1:])) for row in rows if row.response]
        if not parts:
            return zero
        if zero.dim() == 1:
            return torch.cat(parts)
        width = max(part.shape[1] for part in parts)
        whole = [part if part.shape[1] == width else torch.nn.functional.pad(part, _pad_second(part, width)) for part in parts]
        return torch.cat(whole)


def _pad_second(tensor: Tensor, width: int) -> tuple[int, ...]:
    """`pad`'s argument (from the last dimension backwards) that makes dimension 1 `width` wide."""
    return (0, 0) * (tensor.dim() - 2) + (0, width - tensor.shape[1])
