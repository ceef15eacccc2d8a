"""Chooses the questions of each clip: open instructions from a pool, the card's task questions, or the clip's own words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.files import digest, no_such_file
from speechkd.core.seeds import derive
from speechkd.core.text import composed
from speechkd.core.types import Metadata, Scalar
from speechkd.data.cards import Task
from speechkd.models.prompt import MAX_METADATA_CHARS, Reading, metadata_json, plain_text
from speechkd.teachers.base import Request

SPOKEN, WRITTEN = "spoken", "written"
"""Turn names of the two channels of cross-modal distillation"""


class SpanConfig(Config):
    """The text that the teacher reads in place of the audio.

    metadata: the clip's metadata as JSON (wong26a). text: one metadata field as it is, e.g. a description. column: the answers of a
    published column, e.g. a speech LLM's description of the clip (textualised audio, arXiv 2509.18579). A clip without that text gets no
    turns.
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
    """The two channels of cross-modal distillation (arXiv 2509.14930), for clips that are themselves spoken questions.

    `spoken`: the student hears the question; `written`: the student reads it; the teacher reads it in both. The numbers are shares of
    clips, chosen by key; a sample without audio gets only the written turn. The template `shards/prompts/spoken.j2` adds no other text.
    `field` holds the question's text, `label` the dataset's own answer, for the backend `label`.
    """

    field: str = "transcript"
    label: str = ""
    spoken: float = Field(1.0, ge=0, le=1)
    written: float = Field(1.0, ge=0, le=1)


class PromptConfig(Config):
    """The prompt template with its audio span, and the questions.

    `instructions` and the lines of the file `pool` are open questions; every clip gets `per_clip` of them, chosen by its key. (Varied
    prompts are wong26a's remedy for students that learn "there is no audio" from one fixed prompt.) With an empty instruction, the
    template itself asks. `tasks` adds the card's task questions.
    """

    template: str
    instructions: list[str] = []
    pool: str | None = None
    per_clip: float = Field(1.0, ge=0)
    """0.5: about half of the clips get one, chosen by key"""
    tasks: bool = True
    span: SpanConfig = SpanConfig()
    channels: ChannelConfig | None = None
    text: Reading = Reading(form="text")
    """what the student reads in streams `role/text`"""
    transcript: str = "transcript"
    """metadata field with the transcript, for losses on it"""

    def identity(self) -> dict[str, Any]:
        """All settings that the turns depend on, as JSON: the pool as a digest of its text; unset keys are omitted."""
        optional = ("pool", "span", "channels", "text", "transcript")
        unset: dict[str, Any] = {name: True for name in optional if getattr(self, name) == type(self).model_fields[name].get_default()}
        if self.channels is not None and not self.channels.label:
            unset["channels"] = {"label"}
        data = self.model_dump(mode="json", exclude=unset)
        return data if self.pool is None else {**data, "pool": digest(_lines(self.pool))}

    def questions(self) -> list[str]:
        """All open questions. Raises InputError for a pool that cannot be read or is empty, and for a duplicate question."""
        questions = self.instructions + (_lines(self.pool) if self.pool else [])
        if len(set(questions)) < len(questions):
            twice = next(question for question in questions if questions.count(question) > 1)
            raise InputError(f"the question `{twice[:60]}` is given twice (prompt: instructions, pool)")
        return questions


@lru_cache(maxsize=8)
def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{no_such_file(Path(path))} (prompt.pool)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the pool of instructions `{path}`: {error} (prompt.pool)") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"the pool of instructions `{path}` has no line (prompt.pool)")
    return lines


def audio_span_text(request: Request, fields: Iterable[str]) -> str:
    """Text for the audio span of the teacher's prompt: the request's own `span_text`, otherwise `fields` of the metadata as JSON."""
    return metadata_json(request.metadata, fields) if request.span_text is None else request.span_text


def task_applies(task: Task, metadata: Metadata) -> bool:
    """Whether a clip has the task's label and question, and meets its `when`."""
    has_question = not task.instruction_field or task.instruction_field in metadata
    return has_question and task.field in metadata and all(_same(metadata.get(name), value) for name, value in task.when.items())


def _same(one: Scalar | None, other: Scalar) -> bool:
    return composed(one) == composed(other) if isinstance(one, str) and isinstance(other, str) else one == other


def has_audio(turn: str) -> bool:
    """Whether the student gets the audio in this turn: in all but the written one."""
    return turn != WRITTEN


def requests(
    config: PromptConfig, tasks: dict[str, Task], key: str, metadata: Metadata, column_text: str | None = None, audio: bool = True
) -> Iterator[Request]:
    """All turns of one clip, in a fixed order: a pure function of the arguments.

    `column_text`: the clip's text in the column `span.column`. `audio`: whether the sample has audio.
    """
    if config.channels is not None:
        yield from _channels(config.channels, config.span, key, metadata, audio)
    span_text: str | None = None
    if config.span.reads != "metadata":
        text = metadata.get(config.span.field) if config.span.reads == "text" else column_text
        if not isinstance(text, str) or not text.strip():
            return
        span_text = plain_text(text, config.span.max_chars)
    pool = list(enumerate(config.questions()))
    for _ in range(min(int(config.per_clip) + _drawn(key, "per_clip", config.per_clip % 1), len(pool))):
        number, instruction = pool.pop(derive(0, key, len(pool)) % len(pool))
        yield Request(key, f"open-{number}", instruction, metadata, span_text=span_text)
    for name, task in tasks.items() if config.tasks else ():
        if task_applies(task, metadata):
            yield Request(key, f"task-{name}", task.question(metadata), metadata, composed(str(metadata[task.field])), span_text)


def _channels(config: ChannelConfig, span: SpanConfig, key: str, metadata: Metadata, audio: bool) -> Iterator[Request]:
    text = metadata.get(config.field)
    if not isinstance(text, str) or not text.strip():
        return
    words = plain_text(text, span.max_chars)
    label = composed(str(metadata[config.label])) if config.label in metadata else None
    if audio and _drawn(key, SPOKEN, config.spoken):
        yield Request(key, SPOKEN, "", metadata, label, span_text=words)
    if _drawn(key, WRITTEN, config.written):
        yield Request(key, WRITTEN, words, metadata, label, span_text="")


def _drawn(key: str, purpose: str, share: float) -> bool:
    return derive(0, key, purpose) % 10_000 < 10_000 * share
