"""The marks of a prompt's protocol: special tokens, turns of the chat template, ends of the audio span. No text of others may spell one.

A text that spells a mark gets a space inside it, so that neither a tokenizer nor a server reads it as a mark; all other text keeps every
letter and thereby its tokens. Marks are those of the tokenizer and template at hand, and those of common chat models: behind a server runs
a model whose tokenizer nobody here has seen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

SPAN = "\ue000span\ue001"
"""Stands where data goes while a prompt is rendered; `Marks.plain` leaves no private-use character in any text"""
COMMON = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>"
    r"|</?(?:s|bos|eos|pad|unk|mask|audio|image|video|think|thinking|tool_calls?|tool_response|tools)>"
    r"|<(?:start|end)_of_(?:turn|image|audio)>"
    r"|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|BEGIN_AUDIO|AUDIO|IMG|gMASK|sMASK)\]"
)
"""Special tokens of chat models: ChatML, Llama 2 to 4, Mistral, Gemma, Phi, DeepSeek, GLM, Qwen-Audio"""
_TAG = re.compile(r"</?[A-Za-z][\w-]*>|\[/?[A-Za-z][\w-]*\]")
_SHAPED = re.compile(r"[<\[]\S*\w\S*[>\]]")
_SIGN = re.compile(r"[^\w\s]")
_UNSEEN = ("Cc", "Co", "Cs")
"""Unicode categories of control characters, private use and halves of a pair"""


class Marks:
    """The marks of one prompt template in the chat template of one tokenizer."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        """`template`: the text of the prompt template, whose tags (`<AUDIO>`) enclose the audio span."""
        self._tokenizer = tokenizer
        self.tokens: dict[int, Any] = {number: token for number, token in tokenizer.added_tokens_decoder.items() if _is_mark(token)}
        spelled = [token.content for token in self.tokens.values()]
        exact = {*spelled, *_turns(tokenizer, spelled)}
        tags = {tag.casefold() for tag in _TAG.findall(template)}
        found = [*sorted(map(re.escape, exact), key=lambda mark: (-len(mark), mark)), COMMON.pattern]
        found += [f"(?i:{re.escape(tag)})" for tag in sorted(tags)]
        self._pattern = re.compile("|".join(found))

    def plain(self, text: str) -> str:
        """`text` in which no mark is spelled. Control and private-use characters become spaces, other characters stay."""
        text = "".join(" " if sign not in "\n\t\r" and unicodedata.category(sign) in _UNSEEN else sign for sign in text)
        while (broken := self._pattern.sub(lambda mark: _broken(mark[0]), text)) != text:
            text = broken
        while self._normalises and (spot := next(self._spelled(text), None)) is not None:
            text = text[: spot[0]] + _broken(text[slice(*spot)]) + text[spot[1] :]
        return text

    def plain_tokens(self) -> list[Any]:
        """The marks that are no special tokens to the tokenizer (`<think>` is none to Qwen's)."""
        return [token for token in self.tokens.values() if not token.special]

    @cached_property
    def _normalises(self) -> bool:
        """Whether the tokenizer finds marks in text that it has normalised (`＜pad＞`), where no pattern finds them."""
        return bool(self._tokenizer.is_fast) and any(token.normalized for token in self.tokens.values())

    def _spelled(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the tokenizer itself finds a mark."""
        read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return (
            (start, end) for number, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True) if number in self.tokens
        )


def _is_mark(token: Any) -> bool:
    """Whether an added token controls a conversation. Some are only frequent text (`": "`, runs of spaces, `\\n\\n`)."""
    return bool(token.content.strip()) and bool(token.special or _SHAPED.fullmatch(token.content.strip()))


def _turns(tokenizer: Any, tokens: Iterable[str]) -> Iterable[str]:
    """What the chat template writes between turns besides special tokens, as far as it has signs: `[/INST]`, `ASSISTANT:`."""
    turns = [{"role": role, "content": SPAN} for role in ("user", "assistant", "user")]
    try:
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception:  # a program of others, made for other conversations; one that cannot render an answer is refused in `Conversation`
        return []
    between = "\n".join(whole.split(SPAN)[1:])
    for token in tokens:
        between = between.replace(token, "\n")
    lines = [line.strip() for line in between.splitlines()]
    return [line for line in lines if len(line) > 1 and _SIGN.search(line)]


def _broken(mark: str) -> str:
    """A space inside: after the first sign if it begins with one, else before the last; a mark of one character goes."""
    if len(mark) == 1:
        return " "
    return f"{mark[0]} {mark[1:]}" if _SIGN.match(mark) or not _SIGN.match(mark[-1]) else f"{mark[:-1]} {mark[-1]}"
