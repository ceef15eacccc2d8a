"""What a client may send: OpenAI's chat form, as far as a student can do what it asks. What would change the answer is refused."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from speechkd.core.errors import InputError

_INERT: dict[str, tuple[Any, ...]] = {
    "temperature": (None, 0),
    "top_p": (None, 1),
    "n": (None, 1),
    "best_of": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "stop": (None, "", []),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
}
"""Keys that ask for another answer than the student's greedy text, and the values with which they ask for nothing. The values of any other
key are not read."""
_WAY_OUT = {"temperature": "a student answers greedily: leave it out, or set it to 0"}


class _Audio(BaseModel):
    data: str
    format: str = "wav"


class _Url(BaseModel):
    url: str


class _Part(BaseModel):
    type: Literal["text", "input_audio", "audio_url"]
    text: str | None = None
    input_audio: _Audio | None = None
    audio_url: _Url | None = None


class _Message(BaseModel):
    role: str
    content: str | list[_Part]


class _ChatBody(BaseModel):
    model: str | None = None
    messages: list[_Message]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one sound file, as a client sent it."""

    model: str | None
    question: str
    audio: bytes
    """a sound file's content, not yet decoded"""
    max_tokens: int | None
    stream: bool = False
    logprobs: int | None = None
    """how many alternatives each token's log-prob comes with; None: no log-probs"""


def parse_chat(body: bytes) -> Asked:
    """The question in a chat request's body. Raises InputError for anything but one user message with one text and one sound."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise InputError(f"the body must be a JSON object, is a {type(given).__name__}")
    for name, inert in _INERT.items():
        if name in given and not any(given[name] == value for value in inert):
            reason = _WAY_OUT.get(name, "this server cannot do that: leave it out")
            raise InputError(f"`{name}: {str(given[name])[:60]}`: {reason}")
    try:
        chat = _ChatBody.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}") from None
    if [message.role for message in chat.messages] != ["user"]:
        roles = ", ".join(message.role[:20] for message in chat.messages[:5]) or "none"
        raise InputError(
            f"`messages` must be one message of role `user`, has roles: {roles}; the export's own template frames the question"
        )
    content = chat.messages[0].content
    parts = [_Part(type="text", text=content)] if isinstance(content, str) else content
    question = "\n".join(part.text or "" for part in parts if part.type == "text").strip()
    sounds = [_sound(part) for part in parts if part.type != "text"]
    if len(sounds) != 1:
        raise InputError(f"a question is about one sound: send exactly one part of type `input_audio` (got {len(sounds)})")
    if not question:
        raise InputError("the question is empty: send a part of type `text`")
    return Asked(
        model=chat.model,
        question=question,
        audio=sounds[0],
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        stream=chat.stream,
        logprobs=chat.top_logprobs if chat.logprobs else None,
    )


def _sound(part: _Part) -> bytes:
    if part.type == "input_audio" and part.input_audio is not None:
        text = part.input_audio.data
    elif part.type == "audio_url" and part.audio_url is not None:
        head, comma, text = part.audio_url.url.partition(",")
        if not (comma and head.startswith("data:") and head.endswith(";base64")):
            raise InputError("`audio_url` must be a `data:audio/...;base64,` URL: this server fetches nothing")
    else:
        raise InputError(f"a part of type `{part.type}` needs a key `{part.type}`")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the sound is not base64: {error}") from None
