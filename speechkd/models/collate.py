"""Collates examples into one padded micro-batch. All index arithmetic happens here, on the CPU, so that the GPU never waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.types import Batch, ClipTable, TeacherSignals, View
from speechkd.models.encoder_families import Hearing


@dataclass(frozen=True, slots=True)
class Row:
    """One example ready for collation: ids around the audio span, and the response (empty when it is to be generated)."""

    before: Sequence[int]
    after: Sequence[int]
    response: Sequence[int]
    samples_T: np.ndarray | None
    """16 kHz mono float32; None for a text-only example. Turns of one clip have the same array"""
    signals: TeacherSignals = TeacherSignals()
    """of the example's column, one row per response token"""
    stream: int = 0
    """number of the example's stream"""
    language: int = -1
    """index in the projector's languages; -1: unknown"""
    words: Sequence[int] = ()
    """the transcript's ids, where a loss needs them"""
    reads: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """by live text teacher: ids of its prompt; a teacher that is not here does not see the example"""


@dataclass(frozen=True, slots=True)
class Collator:
    """Rows -> Batch. `features`: (clips, samples to pad to) -> encoder input; `positions`: frames -> the projector's audio positions."""

    features: Callable[..., Tensor]
    hearing: Hearing
    """the encoder's arithmetic: samples -> frames, and back"""
    positions: Callable[[int], int]
    sample_rate: int = 16_000
    signals: TeacherSignals = TeacherSignals()
    """the signals that batches carry, each as one row [1, ...] of zeros: fills in for an example, or a batch, that has none"""
    attention: bool = False
    """whether batches carry a stored teacher's attention over the clips, `attention_CQ`"""
    views: Sequence[str] = ()
    """names of live text teachers; every batch has each of their views"""
    share_clips: bool = False
    """encode a clip once for all its turns in a stream; only where no loss compares clips, of which there are fewer then"""

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate; no rows give an empty micro-batch (dummy clip, dummy token, count 0)."""
        heard = [row for row in rows if row.samples_T is not None]
        clip_of_heard, firsts = self._clips(heard)
        shown = [heard[index] for index in firsts]
        clips = [row.samples_T for row in shown if row.samples_T is not None]
        clips = clips or [np.zeros(1, np.float32)]  # a dummy, because the encoder runs on every batch
        frames = [self.hearing.frames(clip.size) for clip in clips]
        window_Q = self.positions(self.hearing.heard(frames))
        audio_lengths = [0 if row.samples_T is None else self.positions(self.hearing.frames(row.samples_T.size)) for row in rows]
        sequences = [[*row.before, *[0] * n, *row.after, *row.response] for row, n in zip(rows, audio_lengths, strict=True)]
        ids_BS, mask_BS, response_T = _padded(sequences, [len(row.response) for row in rows])
        length = ids_BS.shape[1]
        audio_starts = [index * length + len(row.before) for index, row in enumerate(rows)]
        clip_of_row = dict(zip([i for i, row in enumerate(rows) if row.samples_T is not None], clip_of_heard, strict=True))
        audio = [(index, n) for index, n in enumerate(audio_lengths) if n]
        supervised = sum(len(row.response) for row in rows)
        lengths_C = [self.positions(count) for count in frames] if shown else []
        signals = TeacherSignals(**{name: _signal(name, zero, rows) for name, zero in self.signals.items()})
        if self.attention:
            signals = replace(signals, attention_CQ=_attention(shown, lengths_C, window_Q))
        audio_from_A = _joined([torch.arange(n) + clip_of_row[index] * window_Q for index, n in audio])
        return Batch(
            features_BMT=self._features(clips, frames),
            ids_BS=ids_BS,
            mask_BS=mask_BS,
            audio_to_A=_joined([torch.arange(n) + audio_starts[index] for index, n in audio]),
            audio_from_A=audio_from_A,
            shared_R=audio_from_A.unique() if len(shown) < len(heard) else None,
            response_T=response_T,
            mask_T=torch.full((max(1, supervised),), supervised > 0),
            stream_T=_joined(
                [torch.full((len(row.response),), row.stream) for row in rows if row.response], torch.zeros(1, dtype=torch.long)
            ),
            first_T=_joined([torch.arange(len(row.response)) == 0 for row in rows if row.response], torch.zeros(1, dtype=torch.bool)),
            stream_A=_joined([torch.full((n,), rows[index].stream) for index, n in audio]),
            clips=_clip_table(shown, lengths_C, window_Q, frames),
            views={name: _view(name, rows) for name in self.views},
            signals=signals,
            examples=len(rows),
            seconds=sum(row.samples_T.size for row in heard if row.samples_T is not None) / self.sample_rate,
        )

    def _features(self, clips: Sequence[np.ndarray], frames: Sequence[int]) -> Tensor:
        samples = self.hearing.samples(self.hearing.features_of(frames))
        ends = [self.hearing.samples(count) for count in frames]
        return self.features(clips, samples, ends) if self.hearing.alone else self.features(clips, samples)

    def _clips(self, heard: Sequence[Row]) -> tuple[list[int], list[int]]:
        """(number of each row's clip, first row of each clip)."""
        if not self.share_clips:
            return list(range(len(heard))), list(range(len(heard)))
        numbers: dict[tuple[int, int], int] = {}
        clip_of_heard = [numbers.setdefault((id(row.samples_T), row.stream), len(numbers)) for row in heard]
        return clip_of_heard, [clip_of_heard.index(number) for number in range(len(numbers))]


def _joined(parts: Sequence[Tensor], empty: Tensor | None = None) -> Tensor:
    if parts:
        return torch.cat(list(parts))
    return torch.zeros(0, dtype=torch.long) if empty is None else empty


def _padded(sequences: Sequence[Sequence[int]], responses: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """ids and mask, padded on the right, and the flat positions of the last `responses` tokens of each; a dummy where there are none."""
    length = max((len(ids) for ids in sequences), default=2)
    ids_BS = torch.zeros(max(1, len(sequences)), length, dtype=torch.long)
    mask_BS = torch.zeros_like(ids_BS)
    found = []
    for index, (ids, count) in enumerate(zip(sequences, responses, strict=True)):
        ids_BS[index, : len(ids)] = torch.tensor(ids)
        mask_BS[index, : len(ids)] = 1
        found.append(torch.arange(count) + index * length + len(ids) - count)
    if not sequences:
        mask_BS[:] = 1
    response_T = _joined(found)
    return ids_BS, mask_BS, response_T if len(response_T) else torch.ones(1, dtype=torch.long)


def _clip_table(heard: Sequence[Row], audio_lengths: Sequence[int], window_Q: int, frames: Sequence[int]) -> ClipTable:
    words = max((len(row.words) for row in heard), default=0)
    words_CN = torch.zeros(max(1, len(heard)), max(1, words), dtype=torch.long)
    mask_CN = torch.zeros_like(words_CN, dtype=torch.bool)
    for index, row in enumerate(heard):
        words_CN[index, : len(row.words)] = torch.tensor(row.words, dtype=torch.long)
        mask_CN[index, : len(row.words)] = True
    return ClipTable(
        stream_C=torch.tensor([row.stream for row in heard] or [0]),
        frames_C=torch.tensor(list(frames)),
        mask_CQ=torch.arange(window_Q)[None] < torch.tensor(list(audio_lengths) or [0])[:, None],
        language_C=torch.tensor([row.language for row in heard] or [-1]),
        words_CN=words_CN,
        words_mask_CN=mask_CN,
    )


def _view(name: str, rows: Sequence[Row]) -> View:
    """The examples that the live teacher `name` reads; a dummy that no loss counts where it reads none."""
    first = np.cumsum([0, *(len(row.response) for row in rows)])
    used = [index for index, row in enumerate(rows) if name in row.reads and row.response]
    ids_BS, mask_BS, response_T = _padded(
        [[*rows[index].reads[name], *rows[index].response] for index in used], [len(rows[index].response) for index in used]
    )
    to_T = _joined([torch.arange(first[index], first[index + 1]) for index in used], torch.zeros(1, dtype=torch.long))
    return View(ids_BS=ids_BS, mask_BS=mask_BS, response_T=response_T, to_T=to_T)


def _attention(heard: Sequence[Row], audio_lengths: Sequence[int], window_Q: int) -> Tensor:
    """[C, Q]; zeros for a clip whose column has none. Raises InputError for a teacher whose audio positions are not the student's.

    A difference of one is only rounding at the clip's end (Qwen2-Audio drops half a step, `linear` keeps it): that position gets weight 0.
    """
    attention_CQ = torch.zeros(max(1, len(heard)), window_Q)
    for index, (row, count) in enumerate(zip(heard, audio_lengths, strict=True)):
        if row.signals.attention_CQ is None:
            continue
        weights_Q = row.signals.attention_CQ[0]
        if abs(len(weights_Q) - count) > 1:
            raise InputError(
                f"stored attention covers {len(weights_Q)} audio positions of a clip, the student's projector makes {count} of it: "
                "teacher and student must hear in equal steps, or set `attention: false`"
            )
        both = min(count, len(weights_Q))
        attention_CQ[index, :both] = weights_Q[:both]
    return attention_CQ


def _signal(name: str, zero: Tensor, rows: Sequence[Row]) -> Tensor:
    """One signal of all examples, concatenated over tokens; narrower ones (fewer sampled ids) are padded with zeros."""
    found = [(row, dict(row.signals.items())) for row in rows if row.response]
    parts = [signals.get(name, zero.expand(len(row.response), *zero.shape[1:])) for row, signals in found]
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
