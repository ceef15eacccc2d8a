"""Parses replies of OpenAI-compatible servers without trusting them: answers, top-k log-probs, error messages, Retry-After."""

from __future__ import annotations

import email.utils
import math
import re
import time
from typing import Any

import numpy as np

from speechkd.models.marks import COMMON
from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer
from speechkd.teachers.thinking import part_thinking

TEXT_SHOWN = 200
ENDED = frozenset({"stop", "eos", "eos_token", "end", "end_turn", "end_of_turn", "stop_sequence", "stop_token", "complete", "completed"})
CUT = frozenset({"length", "max_tokens", "max_length", "model_length", "max_output_tokens", "max_new_tokens", "token_limit"})
"""Finish reasons by which servers say, in any case, that an answer ended or was cut; any other (content_filter, ...) makes an error"""
THINKS = "all of it is thinking, none is answer: raise `max_new_tokens`, or switch thinking off (extra.chat_template_kwargs)"

_BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffd]")
"""Control characters, and what is left of a character that was cut: lone surrogates and U+FFFD"""


class BadReply(ValueError):
    """A malformed reply: cut off, not JSON, or incomplete. The request may be sent again."""


def read_answer(reply: Any, prompt: Prompt, prompt_tokens: int) -> Answer:
    """The answer in a chat or completion reply, as tokens of the student's tokenizer. Raises BadReply."""
    try:
        choice = reply["choices"][0]
        message = choice.get("message")
        content = choice["text"] if message is None else message.get("content")
        reason = choice.get("finish_reason")
        apart = "" if message is None else message.get("reasoning_content") or message.get("reasoning") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        said = error_text(reply) if isinstance(reply, dict) and "error" in reply else ""
        raise BadReply(f"the reply has no choices, but an error: {said}" if said else "the reply has no choices") from None
    if broken := _BROKEN.search(_text(content)):
        return Answer(clean(_text(content)), [], prompt_tokens, "error", f"the answer holds U+{ord(broken[0]):04X}, which no text has")
    spoken = part_thinking(_text(content).strip())
    text, thinking = spoken.answer, "\n".join(part for part in (clean(_text(apart)).strip(), spoken.thinking) if part)
    if reason is None:
        return Answer(text, [], prompt_tokens, "error", "the server does not say why the answer ends (finish_reason is null)", thinking)
    if str(reason).casefold() in CUT:
        tokens = prompt.answer(text, ended=False)
        why = f"cut by the limit after {len(tokens)} tokens" if text or not thinking else f"cut by the limit, {THINKS}"
        return Answer(text, tokens, prompt_tokens, "length", why, thinking)
    if str(reason).casefold() not in ENDED:
        return Answer(text, [], prompt_tokens, "error", f"stopped by the server: {clean(str(reason))[:TEXT_SHOWN]}", thinking)
    if not text:
        return Answer("", [], prompt_tokens, "error", THINKS if thinking else "the answer is empty", thinking)
    if leaked := COMMON.search(text):
        return Answer(text, [], prompt_tokens, "error", f"the answer spells `{leaked[0]}`, a mark of the model's own", thinking)
    return Answer(text, prompt.answer(text), prompt_tokens, "eos", "", thinking)


def _text(content: Any) -> str:
    """A message's text, also where a server sends it in parts. Raises BadReply."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = "".join(str(part["text"]) for part in content if part.get("type") in ("text", "output_text") and "text" in part)
    if content is not None and not isinstance(content, str):
        raise BadReply("the reply's content is no text")
    return content or ""


def clean(text: str) -> str:
    """Make text valid for UTF-8: lone surrogates become `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_top_k(reply: Any, first: int, tokens: list[int], top_k: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids_TK (int64), logp_TK, tail_logp_T (float32) of the response `tokens`, which start at position `first`, from `prompt_logprobs`.

    vLLM's form: one entry per position, a mapping token id -> {logprob, ...} with the K likeliest ids and the token itself; the first entry
    is null. The tail is log(1 - sum of the K probabilities), -inf where no mass is left. Raises BadReply.
    """
    try:
        entries = reply["choices"][0]["prompt_logprobs"][first : first + len(tokens)]
        ids_TK, logp_TK = np.zeros((len(tokens), top_k), np.int64), np.zeros((len(tokens), top_k), np.float32)
        if len(entries) != len(tokens):
            raise BadReply(f"log-probs of {len(entries)} positions for {len(tokens)} tokens: the server splits text into other tokens")
        for row, (entry, token) in enumerate(zip(entries, tokens, strict=True)):
            if str(token) not in entry:
                raise BadReply("the server scored other tokens than were sent")
            best = sorted(((float(value["logprob"]), int(name)) for name, value in entry.items()), key=lambda pair: (-pair[0], pair[1]))
            if len(best) < top_k or not all(logp <= 1e-4 for logp, _ in best):
                raise BadReply(f"{len(best)} log-probs at a position, {top_k} were asked for")
            if not all(0 <= name < vocabulary for _, name in best[:top_k]):
                raise BadReply(f"the server's ids go beyond {vocabulary - 1}: another model, or `vocab_size` is missing")
            logp_TK[row], ids_TK[row] = [logp for logp, _ in best[:top_k]], [name for _, name in best[:top_k]]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise error if isinstance(error, BadReply) else BadReply("the reply has no prompt_logprobs of the usual form") from None
    rest_T = 1.0 - np.exp(logp_TK.astype(np.float64)).sum(axis=1)
    with np.errstate(divide="ignore"):
        return ids_TK, logp_TK, np.log(np.clip(rest_T, 0.0, 1.0)).astype(np.float32)


def error_text(body: Any) -> str:
    """The message of an error reply, as one short line."""
    part = body
    for name in ("error", "message", "detail"):
        if isinstance(part, dict) and name in part:
            part = part[name]
    text = part if isinstance(part, str) else ""
    return " ".join(clean(text).split())[:TEXT_SHOWN]


def retry_after(header: str | None) -> float | None:
    """Seconds to wait according to a `Retry-After` header (a number or a date); None if it is missing or unusable."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        date = email.utils.parsedate_tz(header)
        if date is None:
            return None
        seconds = email.utils.mktime_tz(date) - time.time()
    return max(0.0, seconds) if math.isfinite(seconds) else None
