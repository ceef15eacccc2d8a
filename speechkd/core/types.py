"""Types that all packages share: the batch, teacher signals, what a loss needs and returns.

Shape suffixes, in names and docstrings: B example, S position of its sequence, T supervised token, C clip, F encoder frame, Q audio
position of a clip (the projector's output), A audio position of the batch, V vocabulary, U teacher vocabulary, W ids that both have,
K kept logits, N sampled tokens or transcript tokens, L layer, D student width, E teacher width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar]
"""A flat JSON object; usual keys: transcript, language, gender, age, emotion; others are kept too."""


class LossOut(NamedTuple):
    """A loss as (total, count): device scalars, float32, or float64 when the inputs are. The value is total / count.

    The graph is kept when count is 0: a loss multiplies by its mask, it never returns a constant instead.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count, which nobody calls on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a stored or live teacher signal is bound to; training refuses a mismatch."""

    tokenizer: str
    """sha256 of the tokenizer's vocabulary and rules"""
    vocab_size: int
    temperature: float = 1.0
    """stored log-probs are already at this temperature"""

    def unfit_for(self, student: Origin) -> str | None:
        """Why these signals cannot teach a student; None if they can. `student`: its tokenizer, output width and loss temperature.

        The student's output may be wider (more padding): the ids beyond the teacher's are part of the tail.
        """
        if self.tokenizer != student.tokenizer:
            return "was made with another tokenizer than the student's"
        if self.vocab_size > student.vocab_size:
            return f"has ids up to {self.vocab_size - 1}, the student's output ends at {student.vocab_size - 1}"
        if self.temperature != student.temperature:
            return f"holds log-probs at temperature {self.temperature:g}, the loss has temperature {student.temperature:g}"
        return None


SIGNALS: tuple[str, ...] = ("response", "topk", "sampled", "dense", "hidden", "projected", "attention", "audio")
"""What a teacher can give, as recipes name it and losses need it (`Needs`). `audio`: its states at audio positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSignals:
    """A teacher's signals for one example or one micro-batch, stored or live. None: the teacher gives no such signal.

    T supervised tokens, K kept ids, N sampled ids, L stored layers, E teacher width, C clips (1 for an example), Q audio positions.
    """

    ids_TK: Tensor | None = None
    """topk: the K likeliest ids of each token, int64 or int32, different within a row"""
    logp_TK: Tensor | None = None
    """topk: their log-probs at the capture temperature, float32"""
    tail_logp_T: Tensor | None = None
    """topk: log of the probability of all other ids, float32"""
    sampled_ids_TN: Tensor | None = None
    """sampled (arXiv 2503.16870): ids that were drawn, int32, different within a row; an empty slot has weight 0"""
    sampled_weights_TN: Tensor | None = None
    """sampled: importance weights, float32"""
    hidden_TLE: Tensor | None = None
    """hidden: states of the layers that the column's settings name, in their order, in the stored dtype"""
    attention_CQ: Tensor | None = None
    """attention: of the response to each audio position, float32; only ratios within a clip matter"""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Field name and tensor of each signal that is there."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ((name, tensor) for name, tensor in pairs if tensor is not None)


class Needs(NamedTuple):
    """What a loss needs, by its own settings. A dry run proves that teacher, shards and student supply it before a GPU is touched."""

    stored: frozenset[str] = frozenset()
    """names in SIGNALS that the example's column must hold"""
    live: frozenset[str] = frozenset()
    """names in SIGNALS that the live teacher must show in its pass"""
    student: frozenset[str] = frozenset()
    """subset of {"head", "hidden", "projected", "gate", "words"} that the student must expose; words: embeddings of the transcript"""
    temperature: float | None = None
    """at which stored log-probs must have been captured; None: the loss reads none"""
    k: int | None = None
    """how many ids a stored top-k row must have; None: as many as there are"""


@dataclass(slots=True, kw_only=True)
class View:
    """The same responses behind another prompt, which a live text teacher reads; its keys stand in `Batch`."""

    ids_BS: Tensor
    mask_BS: Tensor
    response_T: Tensor
    to_T: Tensor


@dataclass(slots=True, kw_only=True)
class ClipTable:
    """The clips of a batch, one row each; its keys stand in `Batch`."""

    stream_C: Tensor
    frames_C: Tensor
    mask_CQ: Tensor
    language_C: Tensor
    words_CN: Tensor
    words_mask_CN: Tensor


@dataclass(slots=True, kw_only=True)
class Batch:
    """One collated micro-batch on one device: every key with its shape and type.

    B examples, S positions of an example, C clips, Q audio positions of a clip, T supervised tokens and A audio positions of the batch.
    Text and audio share one sequence of S positions per example, padded on the right: prompt | audio | prompt | response. "Flat" means an
    index into the flattened dimensions.

        features_BMT        float32  log-mels of the clips [C, M, frames], or their waveforms [C, samples]
        ids_BS              int64    token ids; 0 at audio positions and padding
        mask_BS             int64    1 at real positions
        audio_to_A          int64    flat positions in [B, S] that hold audio
        audio_from_A        int64    flat positions in [C, Q] that they come from
        shared_R            int64    where rows share clips: these positions once each, in order; None: no two rows read the same
        response_T          int64    flat positions in [B, S] of the supervised tokens themselves (`losses/positions.py` shifts them)
        mask_T              bool     False at the dummy token
        stream_T, stream_A  int64    stream of each supervised token and audio position: its number in the run's list of streams
        first_T             bool     the first supervised token of its example
        clips.stream_C      int64    stream of the clip's example
        clips.frames_C      int64    encoder frames of the clip itself; silence fills the rest of its features
        clips.mask_CQ       bool     valid projected positions, a prefix of each row
        clips.language_C    int64    index in the projector's languages, -1 where unknown
        clips.words_CN      int64    token ids of the transcript, where a loss needs them; 0 beyond its end
        clips.words_mask_CN bool     valid transcript tokens
        views[teacher]      .ids_BS, .mask_BS as above, rows are the examples that the live teacher reads; .response_T int64, flat positions
                            in the view of their supervised tokens; .to_T int64, which of the batch's T tokens they are
        signals             stored `TeacherSignals`, aligned with T (`attention_CQ` with the clips); zeros where a column has none
        progress            float    share of the run's steps that are done, for schedules inside the student
        examples, seconds   int, float  number of real examples, seconds of real audio

    An empty micro-batch is a dummy clip and a dummy token whose mask is False. A stream (`kd`, `kd/text`) is rows, not a pass of its own:
    examples that hear and examples that read text go through the student together, and losses pick their rows by masks. So the sequence
    of module calls does not depend on what a batch holds.
    """

    features_BMT: Tensor
    ids_BS: Tensor
    mask_BS: Tensor
    audio_to_A: Tensor
    audio_from_A: Tensor
    response_T: Tensor
    mask_T: Tensor
    stream_T: Tensor
    first_T: Tensor
    stream_A: Tensor
    clips: ClipTable
    views: Mapping[str, View]
    progress: float = 0.0
    signals: TeacherSignals
    examples: int
    seconds: float
    shared_R: Tensor | None = None

    @property
    def read_R(self) -> Tensor:
        """Flat positions in [C, Q] that any row reads, each once: what a projector computes."""
        return self.audio_from_A if self.shared_R is None else self.shared_R

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on `device`, copied without waiting."""
        return cast(Batch, _moved(self, device))

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return _nbytes(self)


def _nbytes(value: object) -> int:
    if isinstance(value, (Batch, View, ClipTable, TeacherSignals)):
        return sum(_nbytes(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, Mapping):
        return sum(map(_nbytes, value.values()))
    return int(getattr(value, "nbytes", 0))


def _moved(value: object, device: str | torch.device) -> object:
    """`value` with every tensor in it on `device`."""
    if isinstance(value, (Batch, View, ClipTable, TeacherSignals)):
        moved: dict[str, Any] = {f.name: _moved(getattr(value, f.name), device) for f in fields(value)}
        return type(value)(**moved)
    if isinstance(value, Mapping):
        return {name: _moved(one, device) for name, one in value.items()}
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value
