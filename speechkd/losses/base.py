"""What a loss is to the distiller: its block in the recipe, what it needs, and a pure function of what student and teacher show.

Three kinds, by where they look:
    HeadLoss    rows of positions through the LM head: cross-entropy, KL to a teacher, live or stored, at response or audio positions
    LayerLoss   the same rows in pairs of hidden layers, as they are or through the logit lens (final norm, then head)
    ClipLoss    whole clips: projector output, its language gate, the transcript's embeddings
All run inside the modules that hold the heads' weights, so that ZeRO-3 has them whole exactly there; none is ever given logits. A loss
never knows whether its teacher is a stored column or a pass of this very step: both arrive in the same fields.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.types import LossOut, Need

Positions = Literal["response", "prompt_end", "audio"]
"""Which rows a loss on positions sees: those that predict the response; only the first of them, where the prompt ends; audio positions."""


class LossConfig(Config):
    """Keys that every loss has."""

    RENAMED = {"roles": "`streams`"}
    kind: str = ""
    """name in the table of losses; the block's own name where it is not given, so that one recipe may use a loss twice"""
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """factor in the sum of losses"""
    streams: list[str] = []
    """streams (`kd`, `kd/text`) whose examples count; empty: all"""


class KernelConfig(LossConfig):
    """Keys of a loss that runs one of the kernels on the head."""

    impl: str = "auto"
    """which implementation of the kernel runs"""


class TaughtConfig(LossConfig):
    """Keys of a loss that compares with a teacher."""

    teacher: str = ""
    """name of a live teacher (recipe block `live`); empty: the signals stored with the example"""


class PositionsConfig(TaughtConfig):
    """Keys of a loss that compares with a teacher at rows of positions."""

    at: Positions = "response"


class LayerConfig(PositionsConfig, ABC):
    """Keys of a loss on pairs of layers; `pairs` says which, and whether they are seen through the logit lens."""

    @abstractmethod
    def pairs(self, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
        """(student layer, teacher layer), 1-based. Raises InputError for a layer that one of them does not have."""

    @property
    @abstractmethod
    def lens(self) -> bool:
        """Whether the loss reads `Layers.lens` and the head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What stands at the T rows of a HeadLoss, on the device; a field is None where the teacher has no such signal."""

    mask_T: Tensor
    """boolean; False rows count nothing"""
    targets_T: Tensor | None = None
    """the response token that each position predicts (signal `response`)"""
    ids_TK: Tensor | None = None
    logp_TK: Tensor | None = None
    """signal `topk`, at the capture temperature"""
    tail_logp_T: Tensor | None = None
    sampled_ids_TN: Tensor | None = None
    sampled_weights_TN: Tensor | None = None
    """signal `sampled`: different ids in a row; a slot of weight 0 is empty"""
    hidden_TLE: Tensor | None = None
    """signal `hidden`, as stored: layers in the order of the column's settings; losses on layers read it, as they are (no logit lens)"""
    teacher_TE: Tensor | None = None
    teacher_weight_UE: Tensor | None = None
    """signal `dense`: the teacher's final hidden states and its head; its logits are rebuilt chunk by chunk"""
    teacher_softcap: float | None = None
    shared_W: Tensor | None = None
    """which ids both vocabularies share; None where they are one"""
    negative_TE: Tensor | None = None
    """final hidden states of a second pass of the same teacher, for contrastive targets"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss:
    """A loss on the LM head's output, never given logits."""

    NEED: Need
    Config: type[LossConfig]
    loss: Callable[[Tensor, Tensor, Supervision, Any, float | None], LossOut]
    """(hidden_TD, weight_VD, supervision, config, softcap) -> LossOut; runs inside the module that holds the head's weight"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """N chosen layers of one model at T rows, in the order of the loss's pairs."""

    states: Sequence[Tensor]
    """N x [T, D]; the last layer's is after the final norm, as transformers gives it"""
    lens: Sequence[Tensor] = ()
    """the same through the model's own final norm, where the config asks for it"""
    weight_VD: Tensor | None = None
    softcap: float | None = None
    owner_T: Tensor | None = None
    """a number for each row's example (any rising numbers below T), for similarities within an utterance"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoss:
    """A loss on pairs of layers; its value is a mean over rows, and a mean or sum over pairs as its config says."""

    NEED: Need
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
    """What is known of the C clips."""

    keep_C: Tensor
    """boolean; the clips that count"""
    mask_CQ: Tensor
    """boolean; valid audio positions, a prefix of each row"""
    language_C: Tensor | None = None
    """index in the gate's languages, -1 where unknown"""
    words_CND: Tensor | None = None
    """the LLM's embeddings of the transcript's tokens"""
    words_mask_CN: Tensor | None = None


def _all_of_them(facts: ClipFacts, config: Any) -> Tensor:
    return facts.keep_C


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLoss:
    """A loss on whole clips; count = clips that `keeps` keeps of those with audio and of the loss's streams."""

    NEED: Need
    Config: type[LossConfig]
    loss: Callable[[Clips, Clips | None, ClipFacts, Any], LossOut]
    """(student, teacher, facts, config) -> LossOut"""
    keeps: Callable[[ClipFacts, Any], Tensor] = _all_of_them
    """(facts, config) -> boolean [C]; from the batch alone, never from a model"""


Loss = HeadLoss | LayerLoss | ClipLoss


def positions_of(config: LossConfig) -> Positions:
    """Where a loss's rows stand."""
    return config.at if isinstance(config, PositionsConfig) else "response"


def teacher_of(config: LossConfig) -> str:
    """The live teacher that a loss names; empty for stored signals and for none."""
    return config.teacher if isinstance(config, TaughtConfig) else ""


def given(tensor: Tensor | None, loss: str, signal: str) -> Tensor:
    """`tensor`, which the loss needs. Raises InputError if the batch lacks it."""
    if tensor is None:
        raise InputError(f"loss `{loss}` needs the signal `{signal}`, which this batch does not carry")
    return tensor
