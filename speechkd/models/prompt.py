"""Builds the prompts of teacher and student from one template.

The teacher reads metadata, usually as JSON, where the student hears audio (wong26a, PMLR 312:61-77, section 3.1).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.types import Metadata
from speechkd.models.conversation import Conversation
from speechkd.models.marks import SPAN, Marks

MAX_METADATA_CHARS = 4000
"""Limit for the text in place of the audio"""
_SPECIAL_START = re.compile(r"([<\[])(?=\S)")


class Reading(Config):
    """What a prompt has in place of the audio: metadata `fields` as JSON, as plain text (a spoken question's transcript), or nothing."""

    fields: list[str] = ["transcript"]
    form: Literal["json", "text", "nothing"] = "json"


@dataclass(frozen=True, slots=True)
class StudentPrompt:
    """Token ids around the audio span."""

    before: list[int]
    after: list[int]


def metadata_json(metadata: Metadata, fields: Iterable[str]) -> str:
    """The flat JSON that stands in the teacher's audio span, with the `fields` that this clip has.

    `<` and `[` become JSON escapes, so no value can close the span or spell a special token (`<...>` or `[...]`). In a flat object they
    occur only inside strings. Long values are cut before they are written, so the result is always complete JSON.
    """
    chosen = {name: metadata[name] for name in fields if name in metadata}
    limit = MAX_METADATA_CHARS
    while True:
        cut = {name: value[:limit] + "…" if isinstance(value, str) and len(value) > limit else value for name, value in chosen.items()}
        text = json.dumps(cut, ensure_ascii=False).replace("<", "\\u003c").replace("[", "\\u005b")
        if len(text) <= MAX_METADATA_CHARS or limit <= 16:
            return text
        limit //= 2


def plain_text(text: str, limit: int = MAX_METADATA_CHARS) -> str:
    """Untrusted text, made safe to put into a prompt as it is: it cannot spell a special token, and its length is limited.

    A `<` or `[` before other text gets a space after it. Control and private-use characters become spaces; line breaks stay.
    """
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Co", "Cs") and char != "\n" else char for char in text)
    text = _SPECIAL_START.sub(r"\1 ", text).strip()
    return text if len(text) <= limit else text[:limit] + "…"


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of vocabulary and chat template: equal digests mean that stored tokens may be used as they are."""
    state = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template], ensure_ascii=False)
    return hashlib.sha256(state.encode()).hexdigest()


def conflicting_id(one: Any, other: Any) -> int | None:
    """The lowest id that stands for different tokens in two tokenizers; None if all ids that both have agree."""
    mine, theirs = ({number: token for token, number in tokenizer.get_vocab().items()} for tokenizer in (one, other))
    return min((number for number in mine.keys() & theirs.keys() if mine[number] != theirs[number]), default=None)


class Prompt:
    """A Jinja template (variables `question`, `audio`) inside the model's own chat template.

    Questions and span texts come from data sets and servers. Every one passes `Marks.plain` here, so none can act as a mark.
    """

    def __init__(self, template: str, tokenizer: Any, where: str = "prompt template") -> None:
        self.text = template
        self.tokenizer = tokenizer
        self.digest = hashlib.sha256(template.encode()).hexdigest()
        if not tokenizer.chat_template:
            raise InputError(
                "the tokenizer has no chat template: put its chat_template.jinja into the model's folder, or take an "
                f"instruction-tuned model ({getattr(tokenizer, 'name_or_path', '')})"
            )
        try:
            self._template = ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(template)
            rendered = self._template.render(question="", audio=SPAN)
        except TemplateError as error:
            raise InputError(f"the prompt template fails: {error} ({where})") from None
        if rendered.count(SPAN) != 1:
            raise InputError(f"the prompt template must use `audio` exactly once, uses it {rendered.count(SPAN)} times ({where})")
        self.marks = Marks(tokenizer, template)
        self._conversation = Conversation(tokenizer, self.marks)
        self.end_of_turn = self._conversation.end_of_turn

    def message(self, question: str, audio: str) -> str:
        """The user's message, with `audio` in the audio span. Chat endpoints get this text."""
        return self._message(question, self.marks.plain(audio))

    def around(self, question: str) -> tuple[str, str]:
        """The user's message before and after the audio span."""
        before, _, after = self._message(question, SPAN).partition(SPAN)
        return before, after

    def _message(self, question: str, span: str) -> str:
        text: str = self._template.render(question=self.marks.plain(question), audio=span)
        return text

    def student(self, question: str) -> StudentPrompt:
        """The student's prompt: ids before and after the audio span."""
        return StudentPrompt(*self._conversation.ids_around(self._message(question, SPAN)))

    def teacher(self, question: str, metadata: str) -> list[int]:
        """The teacher's prompt with `metadata` (JSON text) in the audio span."""
        return self._conversation.prompt_ids(self.message(question, metadata))

    def read(self, question: str, reading: Reading, metadata: Metadata) -> list[int]:
        """The prompt of a model that reads: what `reading` says of `metadata` fills the audio span."""
        if reading.form == "json":
            return self.teacher(question, metadata_json(metadata, reading.fields))
        text = "\n".join(str(metadata[name]) for name in reading.fields if name in metadata) if reading.form == "text" else ""
        return self.teacher(question, plain_text(text))

    def words(self, text: str) -> list[int]:
        """Token ids of a transcript, without special tokens. Losses compare the projector's output with their embeddings."""
        return self._conversation.ids(self.marks.plain(plain_text(text)))

    def answer(self, text: str, ended: bool = True) -> list[int]:
        """A known answer as response tokens, those that it has in the whole conversation. The end-of-turn token follows, unless the answer
        was cut (`ended` is false).

        The text comes from a label, transcript or server, so special tokens spelt in it are tokenized as plain text.
        """
        return self._conversation.answer_ids(text.strip(), ended)

    def decode(self, tokens: Iterable[int]) -> str:
        """Response tokens as text, without special tokens."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text.strip()
