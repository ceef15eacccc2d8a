"""The loss interface: config block, declared needs, pure function.

Three kinds, by what they read:
    HeadLoss    rows of positions through the LM head: cross-entropy, KL to a teacher, live or stored, at response or audio positions
    LayerLoss   the same rows in pairs of hidden layers, as they are or through the logit lens (final norm, then head)
    ClipLoss    whole clips: projector output, its language gate, the transcript's embeddings
All run inside the modules that hold the heads' weights, so that ZeRO-3 has them whole exactly there; none is given [T, V] logits. A loss
never knows whether its teacher is a stored column or a pass of this very step: both arrive in the same fields.

What a loss needs, and which live teachers it names, its config block answers (`LossConfig`); nobody else looks into the block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field
from torch import Tensor, nn

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.types import LossOut, Needs, TeacherSignals
from speechkd.kernels.logits import Head

Positions = Literal["response", "prompt_end", "audio"]
"""Which rows a loss on positions reads: those that predict the response; only the first of them, where the prompt ends; audio positions."""

LIVE_ONLY = frozenset({"dense", "projected", "audio"})
"""Signals that no column stores"""


class LossConfig(Config):
    """Keys that every loss has, and what a loss answers about itself."""

    RENAMED = {"roles": "`streams`"}
    WITHOUT: ClassVar[Mapping[str, str]] = {}
    """signal -> what a user can set where the teacher does not give it"""

    kind: str = ""
    """name in the table of losses; the block's own name where it is not given, so that one recipe may use a loss twice"""
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """factor in the sum of losses"""
    streams: list[str] = []
    """streams (`kd`, `kd/text`) whose examples count; empty: all"""

    def needs(self) -> Needs:
        """What these settings need of column, live teacher and student."""
        return Needs()

    def live_teachers(self) -> dict[str, str]:
        """Live teachers that the block names: key -> name. The loss compares with the one under `teacher`."""
        return {}

    def check_teachers(self, name: str, models: Mapping[str, str]) -> None:
        """Raises ValueError, about the loss `name`, where its live teachers do not fit together. `models`: kind and model of each."""

    def positions(self) -> Positions:
        """Which rows the loss reads."""
        return "response"

    def pairs(self, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
        """(student layer, teacher layer), 1-based, of a loss on layers. Raises InputError for a layer that one of them does not have."""
        return []

    def counts(self, stream: str) -> bool:
        """Whether examples of a stream count."""
        return not self.streams or stream in self.streams

    def counts_role(self, role: str) -> bool:
        """Whether examples of some stream of a teacher role count."""
        return not self.streams or any(stream.partition("/")[0] == role for stream in self.streams)

    @property
    def teacher_name(self) -> str:
        """The live teacher that the loss compares with; empty: stored signals, or none."""
        return self.live_teachers().get("teacher", "")

    @property
    def autograd_through_head(self) -> bool:
        """Whether backward reads the head's weight again; then the term copies it, for under ZeRO-3 it is partitioned by that time.

        A loss that calls `Head.logits` outside the kernels, under autograd, must say True.
        """
        return False


class KernelConfig(LossConfig):
    """Keys of a loss that runs one of the kernels on the head."""

    impl: str = "auto"
    """which implementation of the kernel runs"""

    @property
    def autograd_through_head(self) -> bool:
        """Only `reference` leaves the gradient to autograd."""
        return self.impl == "reference"


class TeacherLossConfig(LossConfig):
    """Keys of a loss that compares with a teacher."""

    teacher: str = ""
    """name of a live teacher (recipe block `live`); empty: the signals stored with the example"""

    def live_teachers(self) -> dict[str, str]:
        """The one teacher, where it is live."""
        return {"teacher": self.teacher} if self.teacher else {}

    def _from_teacher(
        self, *signals: str, student: str, stored: Sequence[str] = (), temperature: float | None = None, k: int | None = None
    ) -> Needs:
        """`signals` of the live teacher where the block names one, else of the column; `stored` are of the column in any case."""
        wanted = frozenset(signals)
        if self.teacher:  # only a teacher that hears has audio positions and clips
            hears = {"audio"} if self.positions() == "audio" else {"projected"} if student == "projected" else set[str]()
            return Needs(stored=frozenset(stored), live=wanted | hears, student=frozenset({student}))
        return Needs(stored=wanted.union(stored), student=frozenset({student}), temperature=temperature, k=k)


class PositionsConfig(TeacherLossConfig):
    """Keys of a loss that compares with a teacher at rows of positions."""

    at: Positions = "response"

    def positions(self) -> Positions:
        """As the block says."""
        return self.at


class LayerConfig(PositionsConfig, ABC):
    """Keys of a loss on pairs of layers; `pairs` says which, and whether they are seen through the logit lens."""

    @abstractmethod
    def pairs(self, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
        """(student layer, teacher layer), 1-based. Raises InputError for a layer that one of them does not have."""

    @property
    def lens(self) -> bool:
        """Whether the loss reads `Layers.lens` and the head, which stored states do not have beside them."""
        return False

    def needs(self) -> Needs:
        """States; through the lens the teacher's head too."""
        return self._from_teacher("hidden", *(["dense"] if self.lens else []), student="hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What a HeadLoss compares the student with at its T rows, on the device; None where there is no such thing."""

    mask_T: Tensor
    """bool; False rows count nothing"""
    targets_T: Tensor | None = None
    """int64; the response token that each position predicts (signal `response`)"""
    signals: TeacherSignals = field(default_factory=TeacherSignals)
    """stored with the examples; none at audio positions"""
    teacher: Head | None = None
    """the live teacher that the loss names: its final hidden states [T, E] and its head; no gradient"""
    negative: Head | None = None
    """the same of a second pass of the same teacher, for contrastive targets"""
    shared_W: Tensor | None = None
    """bool; which ids both vocabularies share; None where they are one"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss:
    """A loss on the output of the LM head."""

    Config: type[LossConfig]
    loss: Callable[[Head, Supervision, Any], LossOut]
    """(student's states and head, supervision, config) -> LossOut; runs inside the module that holds the head's weight"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """N chosen layers of one model at T rows, in the order of the loss's pairs."""

    states: Sequence[Tensor]
    """N x [T, D]; the last layer's is after the final norm, as transformers gives it"""
    lens: Sequence[Head] = ()
    """the same after the model's own final norm, with its head, where the config asks for the logit lens"""
    owner_T: Tensor | None = None
    """a number for each row's example (any rising numbers below T), for similarities within an utterance"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoss:
    """A loss on pairs of layers; its value is a mean over rows, and a mean or sum over pairs as its config says."""

    Config: type[LayerConfig]
    loss: Callable[[Layers, Layers, Tensor, Tensor | None, Any, nn.Module | None], LossOut]
    """(student, teacher, mask_T, shared_W, config, part) -> LossOut, count = kept rows; the teacher gets no gradient"""
    part: Callable[[Any, int, int, int], nn.Module | None] | None = None
    """(config, pairs, D, E) -> what the loss itself learns (a map between widths), called as a module; None: nothing"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """What one model makes of C clips of up to Q positions."""

    projected_CQD: Tensor
    attention_CQ: Tensor | None = None
    """a teacher's last-layer attention from response to audio positions, mean over heads and response tokens"""
    gate_CK: Tensor | None = None
    """logits of a language gate"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """What the batch says of the C clips."""

    keep_C: Tensor
    """bool; the clips that count"""
    mask_CQ: Tensor
    """bool; valid audio positions, a prefix of each row"""
    language_C: Tensor | None = None
    """int64; index in the gate's languages, -1 where unknown"""
    words_CND: Tensor | None = None
    """the LLM's embeddings of the transcript's tokens"""
    words_mask_CN: Tensor | None = None
    """bool; valid transcript tokens"""
    attention_CQ: Tensor | None = None
    """stored attention of an audio teacher's response to each position"""


def _keep_all(facts: ClipFacts, config: Any) -> Tensor:
    return facts.keep_C


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLoss:
    """A loss on whole clips; count = clips that `keeps` keeps of those with audio and of the loss's streams."""

    Config: type[LossConfig]
    loss: Callable[[Clips, Clips | None, ClipFacts, Any], LossOut]
    """(student, teacher, facts, config) -> LossOut"""
    keeps: Callable[[ClipFacts, Any], Tensor] = _keep_all
    """(facts, config) -> bool [C]; from the batch alone, never from a model"""


Loss = HeadLoss | LayerLoss | ClipLoss


T = TypeVar("T")


def given(value: T | None, loss: str, signal: str) -> T:
    """`value`, which the loss needs. Raises InputError if the batch lacks it."""
    if value is None:
        raise InputError(f"loss `{loss}` needs the signal `{signal}`, which this batch does not carry")
    return value
