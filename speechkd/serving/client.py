"""Asks an OpenAI-compatible server about a clip, greedily and with log-probs where it gives them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import httpx2

from speechkd.core.errors import DataError, InputError


@dataclass(frozen=True, slots=True)
class Said:
    """A server's answer."""

    text: str
    logprobs_N: list[float] | None
    """of its tokens; None: the server gives none"""


class ChatServer:
    """A server of chat completions at `url`, which ends in `/v1` or is the host alone."""

    def __init__(self, url: str, key: str | None = None, model: str | None = None, timeout_s: float = 120.0) -> None:
        """Asks for the server's models; `model` is one of them, unset where it has only one. Raises InputError where that fails."""
        base = url.rstrip("/")
        if not base.startswith(("http://", "https://")):
            raise InputError(f"`{url}` is no http(s) address; e.g. http://localhost:8000/v1")
        base = base if base.endswith("/v1") else f"{base}/v1"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(base_url=base, headers=headers, timeout=timeout_s)
        names = [str(entry.get("id")) for entry in self._call("GET", "models").get("data", [])]
        if model is None and len(names) != 1:
            raise InputError(f"{base} has {len(names)} models: name one with --model ({', '.join(names[:10])})")
        if model is not None and model not in names:
            raise InputError(f"{base} has no model `{model}`; it has: {', '.join(names[:10])}")
        self.model = model or names[0]

    def ask(self, wav: bytes, question: str, max_tokens: int) -> Said:
        """The greedy answer to a question about a sound file. Raises DataError where the server refuses or says no such thing."""
        sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [sound, {"type": "text", "text": question}]}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": True,
        }
        found = self._call("POST", "chat/completions", body)
        try:
            choice = found["choices"][0]
            tokens = (choice.get("logprobs") or {}).get("content")
            return Said(str(choice["message"]["content"] or ""), [float(t["logprob"]) for t in tokens] if tokens is not None else None)
        except (KeyError, IndexError, TypeError, ValueError):
            raise DataError(f"{self._client.base_url}: the answer is no chat completion: {str(found)[:200]}") from None

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise InputError(f"{self._client.base_url}: {type(error).__name__}: {error}") from None
        if answer.status_code != 200:
            raise InputError(f"{self._client.base_url}{path} answers {answer.status_code}: {answer.text[:300]}")
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DataError(f"{self._client.base_url}{path}: no JSON object: {answer.text[:100]}")
        return found
