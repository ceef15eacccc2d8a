"""Which turns a clip gets: open instructions from a pool, the questions of its card's tasks, or its own words as the question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.files import digest
from speechkd.core.seeds import derive
from speechkd.core.types import Metadata
from speechkd.data.cards import Task
from speechkd.models.prompt import MAX_METADATA_CHARS, Reading, metadata_json, plain_text
from speechkd.teachers.base import Request

SPOKEN, WRITTEN = "spoken", "written"
"""Turns of the two channels"""


class SpanConfig(Config):
    """What the teacher reads where the student hears.

    metadata: the clip's facts as JSON (wong26a). text: one field as it is, e.g. a description. column: the answers of a published column,
    e.g. what a speech LLM wrote about the clip (textualised audio, arXiv 2509.18579). A clip without the text gets no turns.
    """

    reads: Literal["metadata", "text", "column"] = "metadata"
    field: str = ""
    column: str = ""
    max_chars: int = Field(MAX_METADATA_CHARS, ge=16)

    @model_validator(mode="after")
    def _named(self) -> SpanConfig:
        for kind, name in (("text", "field"), ("column", "column")):
            if (self.reads == kind) != bool(getattr(self, name)):
                raise ValueError(f"`{name}` must be given with `reads: {kind}`, and only with it")
        return self


class ChannelConfig(Config):
    """The two channels of cross-modal distillation (arXiv 2509.14930): clips whose words are themselves the question.

    `spoken`: the student hears it; `written`: the student reads it; the teacher reads it in both. Shares of clips, chosen by key; a sample
    without audio is written only. The template `shards/prompts/spoken.j2` puts nothing around it. `label` names the field that holds the
    dataset's own answer, for the teacher `label`.
    """

    field: str = "transcript"
    label: str = ""
    spoken: float = Field(1.0, ge=0, le=1)
    written: float = Field(1.0, ge=0, le=1)


class PromptConfig(Config):
    """The template with the audio span, and what is asked.

    `instructions` and the lines of the file `pool` are open questions; every clip gets `per_clip` of them, chosen by its key (the remedy
    that wong26a names for students which learn that "there is no audio" from one fixed prompt). An empty instruction leaves the asking
    to the template. `tasks` adds the card's task questions.
    """

    template: str
    instructions: list[str] = []
    pool: str | None = None
    per_clip: float = Field(1.0, ge=0)
    """0.5: every other clip gets one, by its key"""
    tasks: bool = True
    span: SpanConfig = SpanConfig()
    channels: ChannelConfig | None = None
    text: Reading = Reading(form="text")
    """what the student reads in streams `role/text`"""
    transcript: str = "transcript"
    """the metadata field whose words a projector may be asked to find"""

    def identity(self) -> dict[str, Any]:
        """What the turns depend on, as JSON: a pool by what it says, and of what is not set nothing."""
        optional = ("pool", "span", "channels", "text", "transcript")
        unset: dict[str, Any] = {name: True for name in optional if getattr(self, name) == type(self).model_fields[name].get_default()}
        if self.channels is not None and not self.channels.label:
            unset["channels"] = {"label"}
        data = self.model_dump(mode="json", exclude=unset)
        return data if self.pool is None else {**data, "pool": digest(_lines(self.pool))}

    def questions(self) -> list[str]:
        """All open questions. Raises InputError for a pool that cannot be read, is empty, or asks the same twice."""
        found = self.instructions + (_lines(self.pool) if self.pool else [])
        if len(set(found)) < len(found):
            twice = next(question for question in found if found.count(question) > 1)
            raise InputError(f"the question `{twice[:60]}` is given twice (prompt: instructions, pool)")
        return found


@lru_cache(maxsize=8)
def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the pool of instructions `{path}`: {error} (prompt.pool)") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"the pool of instructions `{path}` has no line (prompt.pool)")
    return lines


def reading(request: Request, fields: Iterable[str]) -> str:
    """What stands in the audio span of the teacher's prompt: the request's own text, else `fields` of the metadata as JSON."""
    return metadata_json(request.metadata, fields) if request.reads is None else request.reads


def task_applies(task: Task, metadata: Metadata) -> bool:
    """Whether a clip has the task's label and meets its `when`."""
    asks = not task.instruction_field or task.instruction_field in metadata
    return asks and task.field in metadata and all(metadata.get(name) == value for name, value in task.when.items())


def hears(turn: str) -> bool:
    """Whether the student hears the clip in this turn; in a written turn it reads."""
    return turn != WRITTEN


def requests(
    config: PromptConfig, tasks: dict[str, Task], key: str, metadata: Metadata, described: str | None = None, audio: bool = True
) -> Iterator[Request]:
    """All turns of one clip, in a fixed order. A pure function of configuration, key, metadata and `described`.

    `described`: the text that `span.column` has for the clip. `audio`: whether the clip has any.
    """
    if config.channels is not None:
        yield from _channels(config.channels, config.span, key, metadata, audio)
    reads: str | None = None
    if config.span.reads != "metadata":
        text = metadata.get(config.span.field) if config.span.reads == "text" else described
        if not isinstance(text, str) or not text.strip():
            return
        reads = plain_text(text, config.span.max_chars)
    pool = list(enumerate(config.questions()))
    for _ in range(min(int(config.per_clip) + _drawn(key, "per_clip", config.per_clip % 1), len(pool))):
        number, instruction = pool.pop(derive(0, key, len(pool)) % len(pool))
        yield Request(key, f"open-{number}", instruction, metadata, reads=reads)
    for name, task in tasks.items() if config.tasks else ():
        if task_applies(task, metadata):
            yield Request(key, f"task-{name}", task.question(metadata), metadata, str(metadata[task.field]), reads)


def _channels(config: ChannelConfig, span: SpanConfig, key: str, metadata: Metadata, audio: bool) -> Iterator[Request]:
    text = metadata.get(config.field)
    if not isinstance(text, str) or not text.strip():
        return
    words = plain_text(text, span.max_chars)
    label = str(metadata[config.label]) if config.label in metadata else None
    if audio and _drawn(key, SPOKEN, config.spoken):
        yield Request(key, SPOKEN, "", metadata, label, reads=words)
    if _drawn(key, WRITTEN, config.written):
        yield Request(key, WRITTEN, words, metadata, label, reads="")


def _drawn(key: str, purpose: str, share: float) -> bool:
    return derive(0, key, purpose) % 10_000 < 10_000 * share
