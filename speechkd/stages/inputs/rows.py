"""Turns one training example into a row of a batch: token ids for the student and the live teachers, audio, language, transcript."""

from __future__ import annotations

from collections.abc import Mapping

from speechkd.data.reader import Example
from speechkd.losses import LossConfig
from speechkd.models.collate import Row
from speechkd.models.prompt import Prompt, Reading, StudentPrompt, plain_text
from speechkd.recipe import Recipe
from speechkd.teachers.live_config import column_of
from speechkd.teachers.prompts import has_audio

NOTHING = Reading(form="nothing")
"""An empty audio span"""


def compared_with(losses: Mapping[str, LossConfig], stream: str) -> list[str]:
    """The live teachers that the losses on a stream use."""
    named = [name for config in losses.values() if config.counts(stream) for name in config.live_teachers().values()]
    return list(dict.fromkeys(named))


class RowMaker:
    """Makes rows from examples. Keeps the student's prompt of each question, because questions repeat."""

    def __init__(self, recipe: Recipe, prompt: Prompt, teacher_prompts: Mapping[str, Prompt]) -> None:
        """`teacher_prompts`: by name of each live teacher that reads text, the template with its own tokenizer."""
        self.recipe, self.prompt, self.teacher_prompts = recipe, prompt, teacher_prompts
        self._student_prompts: dict[str, StudentPrompt] = {}
        self._readers = {  # stream number -> live teachers that read its examples
            number: [name for name in compared_with(recipe.losses, stream) if name in teacher_prompts]
            for number, stream in enumerate(recipe.train.streams)
        }
        self._needs_words = any("words" in config.needs().student for config in recipe.losses.values())
        self._languages = recipe.student.projector.gate_languages()

    def __call__(self, stream: int, example: Example, column_texts: Mapping[str, str] | None = None) -> Row:
        """The row of an example. In a stream `role/text` the student reads text where it would hear the audio.

        `column_texts`: column -> its text of this clip, for the columns that live teachers read.
        """
        question, metadata = example.question, example.metadata
        samples_T = example.samples_T
        if not has_audio(example.turn):  # a written question: the student reads it and hears nothing
            samples_T, prompt = None, StudentPrompt(self.prompt.read(question, NOTHING, metadata), [])
        elif samples_T is None and self.recipe.train.streams[stream].endswith("/text"):
            prompt = StudentPrompt(self.prompt.read(question, self.recipe.prompt.text, metadata), [])
        else:
            if question not in self._student_prompts:
                self._student_prompts[question] = self.prompt.student(question)
            prompt = self._student_prompts[question]
        language = str(metadata.get("language", ""))
        return Row(
            prompt.before,
            prompt.after,
            example.tokens,
            samples_T,
            signals=example.signals,
            stream=stream,
            language=self._languages.index(language) if language in self._languages else -1,
            words=self.prompt.words(str(metadata.get(self.recipe.prompt.transcript, ""))) if self._needs_words else (),
            reads={name: self._teacher_ids(name, question, example, column_texts or {}) for name in self._readers[stream]},
        )

    def _teacher_ids(self, teacher: str, question: str, example: Example, column_texts: Mapping[str, str]) -> list[int]:
        prompt, live = self.teacher_prompts[teacher], self.recipe.live[teacher]
        if not has_audio(example.turn):
            return prompt.read(question, NOTHING, example.metadata)
        if column := column_of(live):
            return prompt.teacher(question, plain_text(column_texts[column]))
        return prompt.read(question, live.reads.reading, example.metadata)  # type: ignore[union-attr]  # only readers have a prompt
