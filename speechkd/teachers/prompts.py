"""Which turns a clip gets: open instructions from a pool, and the questions of its card's tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.seeds import derive
from speechkd.core.types import Metadata
from speechkd.data.cards import Task
from speechkd.models.prompt import metadata_json
from speechkd.teachers.base import Request


class PromptConfig(Config):
    """The template with the audio span, and what is asked.

    `instructions` is a pool of open questions; every clip gets `per_clip` of them, chosen by its key (the remedy that wong26a
    names for students which learn that "there is no audio" from one fixed prompt). `tasks` adds the card's task questions.
    """

    template: str
    instructions: list[str] = []
    per_clip: float = Field(1.0, ge=0)
    """0.5: every other clip gets one, by its key"""
    tasks: bool = True


def reading(request: Request, fields: Iterable[str]) -> str:
    """What stands in the audio span of the teacher's prompt: the request's own text, else `fields` of the metadata as JSON."""
    return metadata_json(request.metadata, fields) if request.reads is None else request.reads


def task_applies(task: Task, metadata: Metadata) -> bool:
    """Whether a clip has the task's label and meets its `when`."""
    return task.field in metadata and all(metadata.get(name) == value for name, value in task.when.items())


def requests(config: PromptConfig, tasks: dict[str, Task], key: str, metadata: Metadata) -> Iterator[Request]:
    """All turns of one clip, in a fixed order. A pure function of configuration, key and metadata."""
    pool = list(enumerate(config.instructions))
    lucky = derive(0, key, "per_clip") % 10_000 < 10_000 * (config.per_clip % 1)
    for _ in range(min(int(config.per_clip) + lucky, len(pool))):
        number, instruction = pool.pop(derive(0, key, len(pool)) % len(pool))
        yield Request(key, f"open-{number}", instruction, metadata)
    for name, task in tasks.items() if config.tasks else ():
        if task_applies(task, metadata):
            yield Request(key, f"task-{name}", task.instruction, metadata, str(metadata[task.field]))
