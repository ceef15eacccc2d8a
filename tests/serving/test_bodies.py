"""What a client may send, and what is refused instead of being ignored."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from speechkd.core.errors import InputError
from speechkd.serving.bodies import parse_chat

SOUND = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
TEXT = {"type": "text", "text": "Who speaks?"}


def body(**keys: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": [SOUND, TEXT]}], **keys}).encode()


def test_a_question_about_a_sound() -> None:
    asked = parse_chat(body(model="m", max_tokens=5, temperature=0.0, stream=True, user="me", seed=3))
    assert (asked.model, asked.question, asked.audio, asked.max_tokens, asked.stream) == ("m", "Who speaks?", b"RIFF", 5, True)
    assert parse_chat(body()).logprobs is None and parse_chat(body(logprobs=True, top_logprobs=3)).logprobs == 3


def test_the_sound_may_be_a_data_url() -> None:
    """As lmms-eval's OpenAI client sends it."""
    url = {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64," + base64.b64encode(b"RIFF").decode()}}
    assert parse_chat(json.dumps({"messages": [{"role": "user", "content": [TEXT, url]}]}).encode()).audio == b"RIFF"


REFUSED: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "not JSON"),
    "deep JSON": (b"[" * 100_000, "not JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "no messages": (b"{}", "`messages`"),
    "sampling": (body(temperature=0.7), "greedily"),
    "two answers": (body(n=2), "`n: 2`"),
    "tools": (body(tools=[{}]), "`tools"),
    "JSON answers": (body(response_format={"type": "json_object"}), "response_format"),
    "no token": (body(max_tokens=0), "max_tokens"),
    "a system prompt": (
        json.dumps({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [SOUND, TEXT]}]}).encode(),
        "has roles: system, user",
    ),
    "no sound": (json.dumps({"messages": [{"role": "user", "content": "Who speaks?"}]}).encode(), "exactly one part"),
    "two sounds": (json.dumps({"messages": [{"role": "user", "content": [SOUND, SOUND, TEXT]}]}).encode(), "got 2"),
    "no question": (json.dumps({"messages": [{"role": "user", "content": [SOUND]}]}).encode(), "question is empty"),
    "an image": (json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}).encode(), "messages.0.content"),
    "an address": (
        json.dumps(
            {"messages": [{"role": "user", "content": [TEXT, {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}}]}]}
        ).encode(),
        "fetches nothing",
    ),
    "no base64": (
        json.dumps({"messages": [{"role": "user", "content": [TEXT, {"type": "input_audio", "input_audio": {"data": "$$"}}]}]}).encode(),
        "not base64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name: str) -> None:
    given, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        parse_chat(given)
