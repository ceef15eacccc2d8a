"""The interface of teacher backends: configuration, requests, answers, and the scoring of given answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import model_validator

from speechkd.core.config import Config
from speechkd.core.errors import InputError, unknown_name
from speechkd.core.types import SIGNALS, Metadata
from speechkd.data.cards import Task
from speechkd.data.columns.signals import SignalsConfig
from speechkd.models.prompt import Prompt

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Stop = Literal["eos", "length", "error"]


class TeacherConfig(Config):
    """Base of every backend's configuration."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset()
    """keys that change no answer (where a server is, how often it is asked), and so are no part of a column"""
    backend: str
    tasks: list[str] | None = None
    """the card's tasks that this teacher answers; null: all"""

    def chosen(self, tasks: Mapping[str, Task]) -> dict[str, Task]:
        """Those of a card's tasks that this teacher answers. Raises InputError for a name that the card does not have."""
        for name in self.tasks or ():
            if name not in tasks:
                raise InputError(unknown_name("task", name, tasks, "teachers: tasks"))
        return {name: task for name, task in tasks.items() if self.tasks is None or name in self.tasks}

    def identity(self) -> dict[str, Any]:
        """What the answers depend on, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.OPERATIONAL))

    def fingerprint(self) -> str | None:
        """Digest of the model's files, where there are any that can be read."""
        return None

    def signals_config(self) -> SignalsConfig:
        """What is stored beside the response."""
        return SignalsConfig()

    def positions_per_s(self) -> float:
        """Audio positions of a second of sound, for a teacher that hears; otherwise 0."""
        return 0.0

    def answers_from(self) -> str:
        """Name of the published column whose answers are taken as they are; empty: the teacher answers."""
        return ""

    def output_width(self) -> int:
        """How many ids the teacher's output has, where that is known without loading it; otherwise 0."""
        return 0

    def state_width(self) -> int:
        """Width E of the teacher's hidden states, where that is known without loading it; otherwise 0."""
        return 0


class ScoringConfig(TeacherConfig):
    """Keys of a backend that scores answers."""

    signals: SignalsConfig = SignalsConfig()
    """what is stored beside the response"""
    responses: str = ""
    """a published column of the same corpus: its answers are taken, and this teacher only adds `signals` to them"""

    def signals_config(self) -> SignalsConfig:
        """The block's `signals`."""
        return self.signals

    def answers_from(self) -> str:
        """The block's `responses`."""
        return self.responses

    @model_validator(mode="after")
    def _adds_something(self) -> ScoringConfig:
        if self.responses and not self.signals.names:
            raise ValueError(f"`responses` takes the answers of `{self.responses}` to add `signals` to them: say which")
        return self


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that a teacher may hear: its length is known, its samples are read when asked for."""

    samples: int
    load: Callable[[], np.ndarray]
    """16 kHz mono float32 [samples]"""


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to answer: a question about one clip, which the teacher hears, or whose metadata it reads."""

    key: str
    turn: str
    question: str
    metadata: Metadata
    label: str | None = None
    """the known answer, where the turn is a task and the clip has its label"""
    reads: str | None = None
    """what stands in the audio span of the teacher's prompt, where it is not the metadata as JSON"""
    clip: Clip | None = field(default=None, compare=False, repr=False)
    """the clip itself, for teachers that hear; None for a text-only sample"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The teacher's answer to one request."""

    text: str
    tokens: list[int]
    """ends with the end-of-turn token where `stop` is "eos" """
    prompt_tokens: int
    stop: Stop
    reason: str = ""


def untempered(signals: SignalsConfig, whose: str) -> SignalsConfig:
    """`signals` of a backend whose log-probs are at temperature 1. Raises ValueError (for a validator) where top-k is wanted at another."""
    if signals.topk is not None and signals.topk.temperature != 1.0:
        raise ValueError(f"topk.temperature must be 1, is {signals.topk.temperature:g}: {whose} log-probs are at temperature 1")
    return signals


def gives(config: TeacherConfig, backend: str, can: frozenset[str]) -> frozenset[str]:
    """The signals that a column of this block holds. Raises InputError for one that the backend cannot give."""
    asked = config.signals_config().names
    if not asked <= can:
        raise InputError(f"backend `{backend}` cannot give {quoted(asked - can)}; it gives {quoted(can)}")
    return asked | {"response"}


def quoted(signals: frozenset[str]) -> str:
    """Names of signals for a message, in the order of SIGNALS."""
    return ", ".join(f"`{name}`" for name in SIGNALS if name in signals) or "nothing"


def batches(order: Sequence[int], lengths: Sequence[int], rows: int, positions: int) -> Iterator[list[int]]:
    """`order` cut into batches of at most `rows` rows and `positions` positions, padding included; each has at least one row."""
    batch: list[int] = []
    longest = 0
    for index in order:
        grown = max(longest, lengths[index])
        if batch and (len(batch) == rows or grown * (len(batch) + 1) > positions):
            yield batch
            batch, grown = [], lengths[index]
        batch.append(index)
        longest = grown
    if batch:
        yield batch


class Teacher(Protocol):
    """A backend. Answers come in request order; a batch is a function of the requests alone, so that a redone shard is the same."""

    Config: ClassVar[type[TeacherConfig]]
    SIGNALS: ClassVar[frozenset[str]]
    """names (core.types.SIGNALS) this backend can give"""

    def accepts(self, request: Request) -> bool:
        """Whether this teacher has anything to say to the request (a label teacher answers only what is labelled)."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests, in order."""


@runtime_checkable
class Scoring(Protocol):
    """A backend that can say how likely given answers are: only such a one may declare signals."""

    def score(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Mapping[str, Tensor]]:
        """The declared signals of answers that may come from storage, as `data.columns.signals` encodes them; empty for an error."""


class TeacherType(Protocol):
    """A backend class."""

    Config: type[TeacherConfig]
    SIGNALS: frozenset[str]

    def __call__(self, config: Any, prompt: Prompt) -> Teacher: ...
