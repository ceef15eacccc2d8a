"""One example of one stream as a row of a batch: what the student hears or reads, what live teachers read, what is known of the clip."""

from __future__ import annotations

from collections.abc import Mapping

from speechkd.data.reader import Example
from speechkd.losses import LOSSES
from speechkd.losses.base import teacher_of
from speechkd.models.collate import Row
from speechkd.models.prompt import Prompt, Reading, StudentPrompt, plain_text
from speechkd.recipe import Recipe
from speechkd.teachers.live_config import column_of
from speechkd.teachers.prompts import has_audio

NOTHING = Reading(form="nothing")


def compared_with(recipe: Recipe, stream: str) -> list[str]:
    """Live teachers that some loss compares examples of a stream with."""
    named = [
        name
        for config in recipe.losses.values()
        if not config.streams or stream in config.streams
        for name in (teacher_of(config), getattr(config, "negative", ""))
    ]
    return [name for name in dict.fromkeys(named) if name]


class RowMaker:
    """Examples to rows. Questions repeat, so their ids are kept."""

    def __init__(self, recipe: Recipe, prompt: Prompt, teacher_prompts: Mapping[str, Prompt]) -> None:
        """`teacher_prompts`: of every live teacher that reads, in its own tokenizer."""
        self.recipe, self.prompt, self.teacher_prompts = recipe, prompt, teacher_prompts
        self._asked: dict[str, StudentPrompt] = {}
        self._readers = {
            number: [name for name in compared_with(recipe, stream) if name in teacher_prompts]
            for number, stream in enumerate(recipe.train.streams)
        }
        self._words = any("words" in LOSSES.get(config.kind).NEED.student for config in recipe.losses.values())
        self._languages: list[str] = list(getattr(recipe.student.projector, "languages", []))

    def __call__(self, stream: int, example: Example, described: Mapping[str, str] | None = None) -> Row:
        """The row of an example. In a stream `role/text` it has no audio, and text stands in its place.

        `described`: what the columns that live teachers read say of the clip, by column.
        """
        question, metadata = example.question, example.metadata
        written, samples_T = not has_audio(example.turn), example.samples_T
        if written:  # the question is all there is to read
            samples_T, around = None, StudentPrompt(self.prompt.read(question, NOTHING, metadata), [])
        elif samples_T is None and self.recipe.train.streams[stream].endswith("/text"):
            around = StudentPrompt(self.prompt.read(question, self.recipe.prompt.text, metadata), [])
        else:
            if question not in self._asked:
                self._asked[question] = self.prompt.student(question)
            around = self._asked[question]
        language = str(metadata.get("language", ""))
        return Row(
            around.before,
            around.after,
            example.tokens,
            samples_T,
            signals=example.signals,
            stream=stream,
            language=self._languages.index(language) if language in self._languages else -1,
            words=self.prompt.words(str(metadata.get(self.recipe.prompt.transcript, ""))) if self._words else (),
            reads={name: self._reads(name, question, example, described or {}) for name in self._readers[stream]},
        )

    def _reads(self, teacher: str, question: str, example: Example, described: Mapping[str, str]) -> list[int]:
        prompt, live = self.teacher_prompts[teacher], self.recipe.live[teacher]
        if not has_audio(example.turn):
            return prompt.read(question, NOTHING, example.metadata)
        if column := column_of(live):
            return prompt.teacher(question, plain_text(described[column]))
        return prompt.read(question, live.reads.reading, example.metadata)  # type: ignore[union-attr]  # only readers have a prompt
