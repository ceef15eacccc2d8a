"""The teacher interface: configuration, requests, answers, and the methods of a backend."""

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
    """keys that do not change answers (server address, concurrency), so they are not part of a column's identity"""
    backend: str
    tasks: list[str] | None = None
    """the card's tasks that this teacher answers; null: all"""

    def selected_tasks(self, tasks: Mapping[str, Task]) -> dict[str, Task]:
        """The card's tasks that this teacher answers. Raises InputError for a task that the card does not have."""
        for name in self.tasks or ():
            if name not in tasks:
                raise InputError(unknown_name("task", name, tasks, "teachers: tasks"))
        return {name: task for name, task in tasks.items() if self.tasks is None or name in self.tasks}

    def metadata_fields(self) -> list[str]:
        """The metadata that the teacher reads as JSON; none for one that hears the clip or reads nothing."""
        return []

    def answer_limit(self) -> int | None:
        """Tokens that an answer may have at most; None if the backend has no limit."""
        return None

    def identity(self) -> dict[str, Any]:
        """All settings that the answers depend on, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.OPERATIONAL))

    def fingerprint(self) -> str | None:
        """Digest of the model's files; None if there are none to read."""
        return None

    def signals_config(self) -> SignalsConfig:
        """Signals to store with each response."""
        return SignalsConfig()

    def positions_per_s(self) -> float:
        """Audio positions per second of audio; 0 for a teacher that gets no audio."""
        return 0.0

    def answers_from(self) -> str:
        """Name of a published column whose answers are reused; empty: the teacher generates its own."""
        return ""

    def output_width(self) -> int:
        """Number of ids in the teacher's output; 0 if unknown before the model is loaded."""
        return 0

    def state_width(self) -> int:
        """Width E of the teacher's hidden states; 0 if unknown before the model is loaded."""
        return 0

    def state_depth(self) -> int:
        """Number of layers that give hidden states; 0 if unknown before the model is loaded."""
        return 0


class ScoringConfig(TeacherConfig):
    """Configuration of a backend that can score given answers."""

    signals: SignalsConfig = SignalsConfig()
    """signals to store with each response"""
    responses: str = ""
    """a published column of the same corpus: this teacher reuses its answers and only adds `signals`"""

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
    """An audio clip: its length is known up front, its samples are read on demand."""

    samples: int
    load: Callable[[], np.ndarray]
    """16 kHz mono float32 [samples]"""


@dataclass(frozen=True, slots=True)
class Request:
    """One question about one clip. The teacher gets the audio, or reads the metadata."""

    key: str
    turn: str
    question: str
    metadata: Metadata
    label: str | None = None
    """the known answer, where the turn is a task and the clip has its label"""
    span_text: str | None = None
    """text in the audio span of the teacher's prompt; None: the metadata as JSON"""
    clip: Clip | None = field(default=None, compare=False, repr=False)
    """the audio, for speech-LLM teachers; None for a text-only sample"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The teacher's answer to one request."""

    text: str
    tokens: list[int]
    """ends with the end-of-turn token where `stop` is "eos" """
    prompt_tokens: int
    stop: Stop
    reason: str = ""
    thinking: str = ""
    """what the model thought before it answered: kept in the journal, never stored as an answer"""


def require_temperature_one(signals: SignalsConfig, whose: str) -> SignalsConfig:
    """Return `signals`; raises ValueError (for a validator) if top-k is wanted at a temperature other than 1."""
    if signals.topk is not None and signals.topk.temperature != 1.0:
        raise ValueError(f"topk.temperature must be 1, is {signals.topk.temperature:g}: {whose} log-probs are at temperature 1")
    return signals


def column_signals(config: TeacherConfig, backend: str, supported: frozenset[str]) -> frozenset[str]:
    """The signals in a column made with this configuration. Raises InputError for one that the backend does not support."""
    wanted = config.signals_config().names
    if not wanted <= supported:
        raise InputError(f"backend `{backend}` cannot give {quoted(wanted - supported)}; it gives {quoted(supported)}")
    return wanted | {"response"}


def quoted(signals: frozenset[str]) -> str:
    """Signal names in backquotes, in the order of SIGNALS, for messages."""
    return ", ".join(f"`{name}`" for name in SIGNALS if name in signals) or "nothing"


def batches(order: Sequence[int], lengths: Sequence[int], rows: int, positions: int) -> Iterator[list[int]]:
    """Cut `order` into batches of at most `rows` rows and `positions` padded positions; each batch has at least one row."""
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
    """A backend. Answers come in request order. Batches depend on the requests alone, so a repeated shard gives the same answers."""

    Config: ClassVar[type[TeacherConfig]]
    SIGNALS: ClassVar[frozenset[str]]
    """signals (names from core.types.SIGNALS) that this backend can give"""

    def accepts(self, request: Request) -> bool:
        """Whether this teacher can answer the request (a label teacher needs a label)."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests, in order."""


@runtime_checkable
class Scoring(Protocol):
    """A backend that can score given answers. Only such a backend may declare signals."""

    def score(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Mapping[str, Tensor]]:
        """The declared signals of each answer, encoded as in `data.columns.signals`; an empty mapping for a failed answer."""


class TeacherType(Protocol):
    """A backend class."""

    Config: type[TeacherConfig]
    SIGNALS: frozenset[str]

    def __call__(self, config: Any, prompt: Prompt) -> Teacher: ...
