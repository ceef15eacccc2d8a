"""The words that all rooms share.

Shape suffixes, in names and docstrings: B utterance, F encoder frame, Q projected audio position, T supervised text position,
V vocabulary, U teacher vocabulary, K kept logits, N sampled tokens, L layer, D student width, E teacher width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar]
"""A flat JSON object; the field's names: transcript, language, gender, age, emotion, ...; unknown keys are kept."""


class ExampleKey(NamedTuple):
    """The unit of training: one clip may have many turns (instructions, tasks, prompts)."""

    key: str
    turn: str


class LossOut(NamedTuple):
    """A loss as (total, count): device scalars, float32, or float64 when the inputs are. The value is total / count.

    The graph is kept when count is 0: masks multiply, they never select a constant.
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
        """Why signals of this origin cannot teach a student whose tokenizer, output width and loss temperature `student` says, or None.

        A student whose output is wider (more padding) can be taught: the ids beyond are part of the tail.
        """
        if self.tokenizer != student.tokenizer:
            return "was made with another tokenizer than the student's"
        if self.vocab_size > student.vocab_size:
            return f"has ids up to {self.vocab_size - 1}, the student's output ends at {student.vocab_size - 1}"
        if self.temperature != student.temperature:
            return f"holds log-probs at temperature {self.temperature:g}, the loss has temperature {student.temperature:g}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The teacher's answer; `tokens` ends with the stop token where the teacher stopped by itself."""

    tokens: Tensor
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The K most probable tokens at each response position; `tail_logp_T` is the log of the mass outside them."""

    ids_TK: Tensor
    logp_TK: Tensor
    tail_logp_T: Tensor | None
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Random-sampling KD (arXiv 2503.16870): N ids drawn per position with importance weights; unbiased."""

    ids_TN: Tensor
    weights_TN: Tensor
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Full teacher logits, from a live teacher."""

    logits_TU: Tensor
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """Hidden states of chosen layers at response positions."""

    states_TE: Mapping[int, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Projected:
    """Projector output of an audio teacher and its last-layer attention of the response over audio positions."""

    states_QE: Tensor
    attention_Q: Tensor


TeacherSignal = Response | TopK | Sampled | Dense | Hidden | Projected

SIGNALS: tuple[str, ...] = ("response", "topk", "sampled", "dense", "hidden", "projected", "attention")
"""Names of the signals, as a recipe writes them and as a loss declares its need."""


class Need(NamedTuple):
    """What a loss needs; a dry run proves that teacher, shards and student supply it before a GPU is touched."""

    signals: frozenset[str] = frozenset()
    """subset of SIGNALS that the teacher column or live teacher must give"""
    student: frozenset[str] = frozenset()
    """subset of {"head", "hidden", "projected", "gate", "words"} that the student must expose; words: embeddings of the transcript"""


@dataclass(slots=True, kw_only=True)
class View:
    """The same responses after another prompt: what a live text teacher reads. Rows are those examples that have such a prompt."""

    ids_BS: Tensor
    mask_BS: Tensor
    response_T: Tensor
    """flat positions in this view's own [B * S], of the supervised tokens of its examples, in the order of the batch"""
    to_T: Tensor
    """which of the batch's T positions they are"""


@dataclass(slots=True, kw_only=True)
class ClipTable:
    """What is known of the clips of a batch. A batch without audio has one dummy clip without a valid position."""

    stream_C: Tensor
    """stream (below) of the clip's example"""
    frames_C: Tensor
    """encoder frames of the clip itself; what follows in its features is silence"""
    mask_CQ: Tensor
    """boolean; valid projected positions, a prefix of each row"""
    language_C: Tensor
    """index in the projector's languages, -1 where unknown"""
    words_CN: Tensor
    """ids of the transcript, where a loss needs it; 0 beyond its end"""
    words_mask_CN: Tensor
    """boolean"""


@dataclass(slots=True, kw_only=True)
class Batch:
    """One collated micro-batch, on one device. An empty micro-batch is a dummy clip and a dummy token whose mask is 0.

    Roles and channels are rows, not passes: an example of stream `kd` has audio, one of `kd/text` has text in its place, and all go through
    the student together. So the sequence of module calls does not depend on what a batch holds; losses pick their rows by masks.

    Text and audio share one sequence of S positions per example, padded on the right: prompt | audio | prompt | response.
    """

    features_BMT: Tensor
    """log-mels of the clips [clips >= 1, M, T], or their waveforms [clips >= 1, T]; of a dummy clip where no example has audio"""
    ids_BS: Tensor
    """token ids; 0 at audio positions and padding"""
    mask_BS: Tensor
    """1 at real positions"""
    audio_to_A: Tensor
    """flat positions in [B * S] that hold audio"""
    audio_from_A: Tensor
    """flat positions in [clips * Q] that they come from"""
    response_T: Tensor
    """flat positions in [B * S] of the supervised tokens themselves (`losses/positions.py` shifts them)"""
    mask_T: Tensor
    """boolean; False at a dummy"""
    stream_T: Tensor
    """stream of each supervised token: its number in the run's list of streams"""
    first_T: Tensor
    """boolean; the first supervised token of its example"""
    stream_A: Tensor
    """stream of each audio position"""
    clips: ClipTable
    views: Mapping[str, View]
    """by live teacher"""
    progress: float = 0.0
    """share of the run's steps that are done, for schedules inside the student"""
    signals: Mapping[str, Tensor]
    """tensors of stored teacher signals, aligned with T; `attention_CQ` with the clips"""
    examples: int
    """real examples"""
    seconds: float
    """real audio seconds"""

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on `device`, copied without waiting."""
        return cast(Batch, _moved(self, device))


def _moved(value: object, device: str | torch.device) -> object:
    """`value` with every tensor in it on `device`."""
    if isinstance(value, (Batch, View, ClipTable)):
        moved: dict[str, Any] = {f.name: _moved(getattr(value, f.name), device) for f in fields(value)}
        return type(value)(**moved)
    if isinstance(value, Mapping):
        return {name: _moved(one, device) for name, one in value.items()}
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value
