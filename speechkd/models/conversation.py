"""A question and its answer in a model's own chat template: rendered whole, tokenized whole, then cut where the answer starts.

A generation prompt is not always the beginning of the conversation that it begins (Qwen3 writes an empty thinking block before an answer,
GLM-4 a line end), and pieces tokenized apart are not always the tokens of the whole (SentencePiece puts a space before a first word). The
model would then be trained on one text and asked with another.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from speechkd.core.errors import InputError
from speechkd.models.marks import SPAN, Marks

_START, _ANSWER = "\ue002start\ue003", "\ue002answer\ue003"
"""Stands for what precedes an answer's last words of context; stands for an answer. No text of others holds them: see `Marks.plain`"""
_DAY = datetime(2024, 7, 26)
"""What templates get that ask for today's date (Llama 3): a prompt must be the same tomorrow. It is the date of Llama 3.1's own default"""
_DIRECTIVES = ("%-d", "%-m", "%Y", "%y", "%m", "%d", "%B", "%b", "%A", "%a", "%j", "%H", "%I", "%M", "%S", "%p")
_FIXED_DAY = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f".replace('{each}', '{_DAY.strftime(each)}')" for each in _DIRECTIVES)
    + " }}{% endmacro %}\n"
)
"""Stands before a template. transformers takes no function as a value for one, and its own `strftime_now` says today's date"""
_PROBE = 'Say "it\'s" <b>&</b> [y] {x} 1,000.50 a\\b É ß 今天\n\n  two  spaces\tand ' + "many words " * 50 + "END?"
_WAY_OUT = "mend chat_template.jinja, which must show each `message.content`, a text, once and as it is; or take another model"
_ANSWERS = ("The", "a", "9", '"', "<", "-", "É", "今", "…", "ان")
"""Beginnings of answers that must not change the tokens before them"""


def fixed_template(tokenizer: Any) -> str:
    """A tokenizer's chat template, in which every day is the same."""
    template: str = tokenizer.get_chat_template()
    return f"{{%- set date_string = '{_DAY.strftime('%d %b %Y')}' -%}}\n{_FIXED_DAY}{template}"


class Conversation:
    """One user turn and one assistant turn in a tokenizer's chat template, as text and as tokens."""

    def __init__(self, tokenizer: Any, marks: Marks) -> None:
        """Raises InputError for a chat template that fails, or that loses, alters or repeats a message."""
        self.tokenizer, self._marks, self._where = tokenizer, marks, f"`{getattr(tokenizer, 'name_or_path', '')}`"
        whole = self._parts(_PROBE)[0]
        if whole.count(_PROBE) != 1:
            raise InputError(f"the chat template repeats the user's message: {_WAY_OUT} ({self._where})")
        header = whole.rstrip(" ")
        self._gap = whole[len(header) :]
        start, mark = max(((header.rfind(t.content) + len(t.content), t) for t in self._in(header)), default=(0, None), key=lambda e: e[0])
        after_message = header.index(_PROBE) + len(_PROBE)
        self._tail = header[max(start, after_message) :]
        self._eats_space = bool(start > after_message and mark is not None and mark.rstrip)
        self._between, self.end_of_turn = self._end()
        ids = self.ids(header)
        for answer in _ANSWERS:
            if self.ids(header + self._gap + answer)[: len(ids)] != ids:
                raise InputError(
                    f"the tokenizer merges the answer `{answer}` with the chat template's text before it: no prompt ends there; use a chat "
                    f"template that ends an assistant's header with a special token or a line end ({self._where})"
                )

    def before_answer(self, message: str) -> str:
        """The conversation up to its answer, for a user's `message`, whose outer whitespace many templates drop.

        Spaces right before the answer are the answer's, since most tokenizers write them into its first token.
        """
        return self._parts(message)[0].rstrip(" ")

    def ids(self, text: str) -> list[int]:
        """Tokens of rendered text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def prompt_ids(self, message: str) -> list[int]:
        """Tokens of the conversation up to its answer."""
        return self.ids(self.before_answer(message))

    def ids_around(self, message: str) -> tuple[list[int], list[int]]:
        """Tokens before and after the `SPAN` in a user's message, up to the answer. Nothing merges with what fills the span."""
        ids: list[int] = self._anchored(self.before_answer(message), add_special_tokens=False)["input_ids"]
        spot = ids.index(self._anchored.convert_tokens_to_ids(SPAN))
        return ids[:spot], ids[spot + 1 :]

    def answer_ids(self, text: str, ended: bool) -> list[int]:
        """Tokens of an answer as they follow the assistant's header, letter by letter: marks spelled in it are ordinary tokens.

        With `ended`, what the template writes after it follows, up to the end of the turn.
        """
        for mark in (_START, SPAN):
            text = text.replace(mark, " ")
        before, whole = self._before, self._verbatim(self._tail + self._gap + text + (self._between if ended else ""))
        if whole[: len(before)] != before:  # its first letters merge with the header: no generated answer could begin so
            before, whole = [], self._verbatim(text)
        return [*whole[len(before) :], self.end_of_turn] if ended else whole[len(before) :]

    @cached_property
    def _before(self) -> list[int]:
        return self._verbatim(self._tail)

    def _verbatim(self, text: str) -> list[int]:
        """Tokens of a text that something stands before, marks read as plain text."""
        ids: list[int] = self._anchored(_START + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids[1:]

    @cached_property
    def _anchored(self) -> Any:
        """The tokenizer with tokens for the span and for all before the last mark. Marks are special, so that they can be split."""
        from tokenizers import AddedToken

        anchored = copy.deepcopy(self.tokenizer)
        anchored.add_tokens(self._marks.plain_tokens(), special_tokens=True)  # `<think>` is no special token to Qwen's
        anchored.add_tokens([AddedToken(SPAN, normalized=False), AddedToken(_START, normalized=False, rstrip=self._eats_space)])
        return anchored

    def _in(self, text: str) -> list[Any]:
        return [token for token in self._marks.tokens.values() if token.content in text]

    def _end(self) -> tuple[str, int]:
        """(text between an answer and the end of its turn, the token that ends the turn).

        It is the first mark after an answer. A template without one there ends the turn with the mark of the next (`<|user|>` of GLM-4),
        or else with the tokenizer's end of text.
        """
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
        for more in ([], [{"role": "user", "content": SPAN}]):
            after = self._render([*turns, *more]).partition(_ANSWER)[2].partition(SPAN)[0]
            found = [(after.find(token.content), -len(token.content), number) for number, token in self._marks.tokens.items()]
            spot, _, number = min((entry for entry in found if entry[0] >= 0), default=(-1, 0, 0))
            if spot >= 0 and not after[:spot].strip():
                return "" if self._marks.tokens[number].lstrip else after[:spot], number
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                f"the chat template ends no turn, and the tokenizer names no `eos_token`: name it in tokenizer_config.json ({self._where})"
            )
        return "", int(self.tokenizer.eos_token_id)

    def _parts(self, message: str) -> tuple[str, str]:
        """(text before the answer, text after it). Raises InputError unless both turns are in it as they are."""
        turns = [{"role": "user", "content": message}, {"role": "assistant", "content": _ANSWER}]
        before, answer, after = self._render(turns).partition(_ANSWER)
        lost = "the assistant's answer" if not answer else "the user's message" if message.strip() not in before else ""
        if lost or _ANSWER in after:
            does = f"loses or alters {lost}" if lost else "repeats the assistant's answer"
            raise InputError(f"the chat template {does}: {_WAY_OUT} ({self._where})")
        return before, after

    def _render(self, turns: Sequence[Mapping[str, str]]) -> str:
        try:
            template = _FIXED_DAY + self.tokenizer.get_chat_template()
            text: str = self.tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, date_string=_DAY.strftime("%d %b %Y")
            )
        except Exception as error:  # a template is a program of others, which may fail in any way
            what = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
            raise InputError(
                f"the chat template fails on a question and its answer: {what}; mend chat_template.jinja ({self._where})"
            ) from None
        return text
