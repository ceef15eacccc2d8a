"""What every teacher backend takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from speechkd.core.config import Config
from speechkd.core.errors import InputError, unknown_name
from speechkd.core.types import SIGNALS, Metadata
from speechkd.data.cards import Task
from speechkd.data.signals import SignalsConfig
from speechkd.models.prompt import Prompt

if TYPE_CHECKING:
    from torch import Tensor

Stop = Literal["eos", "length", "error"]


class TeacherConfig(Config):
    """Base of every backend's configuration."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset()
    """keys that change no answer (where a server is, how often it is asked), and so are no part of a column"""
    REMOTE: ClassVar[bool] = False
    """`model` is a name of a server, not a folder or hub id whose files could be fingerprinted"""

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

    def stores(self) -> SignalsConfig:
        """What is stored beside the response."""
        return SignalsConfig()

    def output_width(self) -> int:
        """How many ids the teacher's output has, where that is known without loading it; otherwise 0."""
        return 0

    def state_width(self) -> int:
        """Width E of the teacher's hidden states, where that is known without loading it; otherwise 0."""
        return 0


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to answer: a question about one clip, whose metadata the teacher reads instead of hearing it."""

    key: str
    turn: str
    question: str
    metadata: Metadata
    label: str | None = None
    """the known answer, where the turn is a task and the clip has its label"""
    reads: str | None = None
    """what stands in the audio span of the teacher's prompt, where it is not the metadata as JSON"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The teacher's answer to one request."""

    text: str
    tokens: list[int]
    """ends with the end-of-turn token where `stop` is "eos" """
    prompt_tokens: int
    stop: Stop
    reason: str = ""


def gives(config: TeacherConfig, backend: str, can: frozenset[str]) -> frozenset[str]:
    """The signals that a column of this block holds. Raises InputError for one that the backend cannot give."""
    asked = config.stores().names
    if not asked <= can:
        raise InputError(f"backend `{backend}` cannot give {quoted(asked - can)}; it gives {quoted(can)}")
    return asked | {"response"}


def quoted(signals: frozenset[str]) -> str:
    """Names of signals for a message, in the order of SIGNALS."""
    return ", ".join(f"`{name}`" for name in SIGNALS if name in signals) or "nothing"


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
        """The declared signals of answers that may come from storage, as `data.signals` encodes them; empty for an error."""


class TeacherType(Protocol):
    """A backend class."""

    Config: type[TeacherConfig]
    SIGNALS: frozenset[str]

    def __call__(self, config: Any, prompt: Prompt) -> Teacher: ...
