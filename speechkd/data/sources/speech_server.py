"""Client of a text-to-speech server's `/v1/audio/speech`: one request per text returns an audio file (OpenAI API, "Create speech").

Answers are untrusted like any corpus: limited in size, decoded under limits, rejected if they are not audio.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import httpx2 as httpx
from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.data.audio.clips import decode_bytes
from speechkd.data.audio.raw import RawClip, Rejected

MAX_ANSWER = 64 << 20
"""Most bytes of one answer"""
_RETRIED_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504}
_SETTINGS_STATUSES = {401, 403, 404, 405}


class ServerVoice(Config):
    """A text-to-speech server and its voices. Unlike espeak's, its audio is not reproducible bit by bit."""

    engine: Literal["server"]
    url: str = Field(pattern=r"^https?://[^\s]+$")
    """base URL, up to and including `/v1`"""
    model: str
    voices: list[str] = Field(min_length=1)
    speed: float = Field(default=1.0, ge=0.25, le=4.0)
    format: Literal["wav", "flac", "mp3", "opus"] = "wav"
    key_variable: str = "OPENAI_API_KEY"
    """environment variable with the API key; unset: no key is sent"""
    timeout_s: float = Field(default=120, gt=0)
    attempts: int = Field(default=5, ge=1)
    at_once: int = Field(default=4, ge=1, le=64)


class SpeechServer:
    """Sends texts to the server, `at_once` at a time; answers come in the order of the texts."""

    def __init__(self, config: ServerVoice) -> None:
        self.config = config
        key = os.environ.get(config.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=config.timeout_s, headers=headers, follow_redirects=False)

    def speak(self, texts_and_voices: Sequence[tuple[str, str]]) -> Iterator[RawClip | Rejected]:
        """Speak (text, voice) pairs. Raises InputError if the settings are wrong or the server does not answer."""
        with self._client, ThreadPoolExecutor(self.config.at_once) as pool:
            yield from pool.map(lambda pair: self._ask(*pair), texts_and_voices)

    def _ask(self, text: str, voice: str) -> RawClip | Rejected:
        config = self.config
        url = f"{config.url.rstrip('/')}/audio/speech"
        request = {"model": config.model, "input": text, "voice": voice, "response_format": config.format, "speed": config.speed}
        problem = ""
        for attempt in range(config.attempts):
            if attempt:
                time.sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
            try:
                with self._client.stream("POST", url, json=request) as answer:
                    if answer.status_code == 200:
                        return _body(answer)
                    problem = f"status {answer.status_code}"
                    if answer.status_code in _SETTINGS_STATUSES:
                        raise InputError(f"`{url}` answered {problem}: is url, model or key right? (card: source.voice)")
                    if answer.status_code not in _RETRIED_STATUSES:
                        return Rejected(f"the speech server answered {problem}")
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"no answer from `{url}` in {config.attempts} attempts: {problem}")


def _body(answer: httpx.Response) -> RawClip | Rejected:
    data = bytearray()
    for chunk in answer.iter_bytes():
        data += chunk
        if len(data) > MAX_ANSWER:
            return Rejected(f"the speech server's answer has more than {MAX_ANSWER} bytes")
    return decode_bytes(bytes(data))
