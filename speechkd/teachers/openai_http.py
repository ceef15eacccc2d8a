"""Any OpenAI-compatible server as a teacher: vLLM, SGLang, `transformers serve`, a hosted endpoint.

Bounded concurrency, a time limit a call, retries with jitter that honour Retry-After. Requests go out sorted by message, so that a
server's prefix cache sees what they share. Every call has a connection of its own: a reply that is sent twice can then never be read as
the reply to the next call. Redirects are not followed and proxies of the environment are not used: what a dataset says goes to the named
server and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from time import monotonic
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import httpx2
from pydantic import Field, field_validator

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.log import say
from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer, Request, TeacherConfig
from speechkd.teachers.openai_reply import BadReply, error_text, read_answer, retry_after
from speechkd.teachers.prompts import reading

MAX_REPLY = 64 << 20
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
CONNECT_S = 10.0
MASK = "***"
MODELS = "/models"


class OpenAIHttpConfig(TeacherConfig):
    """`url` ends where `/chat/completions` begins, e.g. `http://node7:8000/v1`; `model` as the server names it.

    `fields`: the metadata that the teacher reads (in this order; absent ones are skipped). The key comes from the environment variable that
    `key_env` names, and from nowhere else. `revision` is yours to raise when the server's model changes: it is part of the column.
    """

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset({"url", "key_env", "concurrency", "timeout_s", "retries", "patience_s"})
    REMOTE: ClassVar[bool] = True

    backend: Literal["openai_http"] = "openai_http"
    url: str
    model: str
    revision: str = ""
    fields: list[str]
    api: Literal["chat", "completions"] = "chat"
    """chat: the server applies its own chat template; completions: it gets the student's prompt as token ids (vLLM, SGLang)"""
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    key_env: str | None = None
    concurrency: int = Field(32, ge=1, le=4096)
    timeout_s: float = Field(120.0, gt=0)
    """of one call, from sending to the last byte"""
    retries: int = Field(5, ge=0)
    """calls after the first before a request that fails, while the server works, becomes a row with a reason"""
    patience_s: float = Field(600.0, ge=0)
    """how long a server may be away before the stage stops (the same command continues)"""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be http://HOST[:PORT]/v1 or https://…")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must not carry user, password or query: a key belongs in the environment variable that `key_env` names")
        return url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _a_name_not_a_key(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
            raise ValueError("must be the name of an environment variable (A-Z, 0-9, _), never the key itself")
        return name


class OpenAIHttpTeacher:
    """Answers as they come, each tokenized by the student's tokenizer. A request that cannot be answered is an answer with a reason."""

    Config = OpenAIHttpConfig
    SIGNALS = frozenset({"response"})

    def __init__(self, config: OpenAIHttpConfig, prompt: Prompt) -> None:
        """Raises InputError for a missing key, a server that cannot be reached or refuses the key, a model that it does not list."""
        self.config, self.prompt = config, prompt
        self._key = _Key(config.key_env)
        self._tls = httpx2.create_ssl_context()
        asyncio.run(self._check_server())

    def accepts(self, request: Request) -> bool:
        """Every request: an LLM always answers."""
        return True

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests, in request order."""
        answers = dict(pair for batch in self.stream(requests, ()) for pair in batch)
        return [answers[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request], done: Collection[int]) -> Iterator[list[tuple[int, Answer]]]:
        """Answers as they come, a few at a time. A slot asks its next question only when the consumer has come back for more.

        Raises InputError where the server refuses key, model or path; ConnectionError where it is away for longer than `patience_s`.
        """
        messages = {number: self._message(request) for number, request in enumerate(requests) if number not in done}
        if not messages:
            return
        loop = asyncio.new_event_loop()
        calls = _Calls(self, sorted(messages, key=lambda number: (messages[number], number)), requests)
        try:
            while batch := loop.run_until_complete(calls.next_batch()):
                yield batch
        finally:
            loop.run_until_complete(calls.close())
            loop.close()

    def _message(self, request: Request) -> str:
        return self.prompt.message(request.question, reading(request, self.config.fields))

    def body(self, request: Request) -> tuple[str, dict[str, Any], int]:
        """Path, JSON body and prompt length (in the student's tokens) of one call."""
        config = self.config
        prompt = self.prompt.teacher(request.question, reading(request, config.fields))
        body: dict[str, Any] = {"model": config.model, "max_tokens": config.max_new_tokens, "temperature": config.temperature}
        body |= {"top_p": config.top_p} if config.top_p < 1 else {}
        body |= {"seed": config.seed} if config.seed is not None else {}
        if config.api == "chat":
            return "/chat/completions", {**body, "messages": [{"role": "user", "content": self._message(request)}]}, len(prompt)
        return "/completions", {**body, "prompt": prompt}, len(prompt)

    def client(self) -> httpx2.AsyncClient:
        """A client without connection reuse, redirects or proxies."""
        return httpx2.AsyncClient(
            auth=self._key,
            verify=self._tls,
            timeout=httpx2.Timeout(self.config.timeout_s, connect=min(CONNECT_S, self.config.timeout_s)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,
        )

    async def call(self, client: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call, one parsed reply. Raises _Again, _Rejected or InputError; nothing raised or returned holds the key."""
        name = str(uuid.uuid4())
        try:
            async with asyncio.timeout(self.config.timeout_s):
                headers = {"X-Request-Id": name, "Accept-Encoding": "identity"}
                async with client.stream(method, self.config.url + path, json=body, headers=headers) as response:
                    data = bytearray()
                    async for chunk in response.aiter_bytes():
                        data += chunk
                        if len(data) > MAX_REPLY:
                            raise _Again("the reply is too long")
                    if response.headers.get("X-Request-Id", name) != name:
                        raise _Again("the reply is to another call")
                    return self._judge(response.status_code, response.headers.get("Retry-After"), bytes(data), path)
        except (TimeoutError, httpx2.TimeoutException) as error:
            away = isinstance(error, httpx2.ConnectTimeout)
            raise _Again(f"no reply within {self.config.timeout_s:g} s", away=away) from None
        except httpx2.ConnectError as error:
            raise _Again(self._key.masked(str(error)) or "no connection", away=True) from None
        except httpx2.HTTPError as error:
            raise _Again(f"the reply broke off ({type(error).__name__})") from None

    def _judge(self, status: int, wait: str | None, data: bytes, path: str) -> Any:
        where = f"({self.config.url}{path})"
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        said = self._key.masked(error_text(body))
        if status in (401, 403):
            key = f"key of `{self.config.key_env}`" if self.config.key_env else "call without a key; name its variable in `key_env`"
            raise InputError(f"the server refuses the {key}: {status} {said} {where}")
        if status == 404 and path == MODELS:
            raise _Rejected("no list of models")
        if status == 404 or 300 <= status < 400:
            raise InputError(f"the server answers {status} {said}: wrong `url` or `model` {where}")
        if status in (408, 409, 425, 429) or status >= 500:
            seconds = retry_after(wait)
            raise _Again(f"{status} {said}".strip(), wait=seconds, counts=status != 429)
        if status >= 400:
            raise _Rejected(f"{status} {said}".strip())
        if not isinstance(body, dict):
            raise _Again("the reply is not JSON")
        return body

    async def _check_server(self) -> None:
        """Reach the server, and compare the model with those it lists, where it lists any."""
        url = self.config.url
        async with self.client() as client:
            for last in (False, False, True):
                try:
                    listed = await self.call(client, "GET", MODELS)
                    break
                except _Again as problem:
                    if problem.away and last:
                        raise InputError(f"cannot reach the teacher's server: {problem} ({url}: teachers.url)") from None
                    if not problem.away:  # it lives, and does not list models
                        return
                    await asyncio.sleep(2 * FIRST_WAIT_S)
                except _Rejected:
                    return
        entries = listed.get("data")
        names = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry] if isinstance(entries, list) else []
        if names and self.config.model not in names:
            raise InputError(unknown_name("model", self.config.model, names, f"{url} lists these"))


class _Key(httpx2.Auth):
    """The key, read once from the environment; shown by nothing."""

    def __init__(self, variable: str | None) -> None:
        self._value = os.environ.get(variable, "") if variable else ""
        if variable and not self._value:
            raise InputError(f"environment variable `{variable}` is not set; it must hold the server's key (teachers: key_env)")
        if not self._value.isascii() or not self._value.isprintable():
            raise InputError(f"environment variable `{variable}` holds a line break or another sign that no key has (teachers: key_env)")

    def __repr__(self) -> str:
        return f"_Key({MASK})"

    def auth_flow(self, request: httpx2.Request) -> Any:
        if self._value:
            request.headers["Authorization"] = f"Bearer {self._value}"
        yield request

    def masked(self, text: str) -> str:
        """`text` of a server, which may repeat the key that it was sent."""
        return text.replace(self._value, MASK) if self._value else text


class _Again(Exception):
    """A call that may succeed later."""

    def __init__(self, reason: str, wait: float | None = None, away: bool = False, counts: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.away, self.counts = wait, away, counts


class _Rejected(Exception):
    """A request that this server will never answer."""


class _Calls:
    """The calls of one shard: `concurrency` slots over one list of requests."""

    def __init__(self, teacher: OpenAIHttpTeacher, order: Sequence[int], requests: Sequence[Request]) -> None:
        self._teacher, self._config, self._requests = teacher, teacher.config, requests
        self._left = iter(order)
        self._ready: asyncio.Queue[tuple[int, Answer] | Exception | None] = asyncio.Queue()
        self._committed = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []
        self._wanted = min(self._config.concurrency, len(order))
        self._client: httpx2.AsyncClient | None = None
        self._heard = monotonic()
        self._told = False
        self._failed: Exception | None = None

    async def next_batch(self) -> list[tuple[int, Answer]]:
        """What has come since the last call, at least one answer; empty at the end. Being called says that the last batch is committed."""
        if self._client is None:
            self._client = self._teacher.client()
            self._slots = [asyncio.create_task(self._slot(self._client)) for _ in range(self._wanted)]
        self._committed.set()
        self._committed = asyncio.Event()
        batch: list[tuple[int, Answer]] = []
        while not batch and self._failed is None and self._wanted:
            found = [await self._ready.get()]
            while not self._ready.empty():
                found.append(self._ready.get_nowait())
            for item in found:
                if item is None:
                    self._wanted -= 1
                elif isinstance(item, Exception):
                    self._failed = self._failed or item
                else:
                    batch.append(item)
        if not batch and self._failed is not None:
            raise self._failed
        return batch

    async def close(self) -> None:
        """Drop what is in flight."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def _slot(self, client: httpx2.AsyncClient) -> None:
        try:
            for number in self._left:
                answer = await self._answer(client, self._requests[number])
                committed = self._committed
                self._ready.put_nowait((number, answer))
                await committed.wait()
            self._ready.put_nowait(None)
        except Exception as error:
            self._ready.put_nowait(error)

    async def _answer(self, client: httpx2.AsyncClient, request: Request) -> Answer:
        path, body, prompt_tokens = self._teacher.body(request)
        began, failures, calls = monotonic(), 0, 0
        while True:
            try:
                reply = await self._teacher.call(client, "POST", path, body)
                answer = read_answer(reply, self._teacher.prompt, prompt_tokens)
                self._back()
                return answer
            except _Rejected as refusal:
                self._back()
                return Answer("", [], prompt_tokens, "error", str(refusal))
            except (_Again, BadReply) as problem:
                again = problem if isinstance(problem, _Again) else _Again(str(problem))
            calls += 1
            failures += again.counts and not again.away
            if failures > self._config.retries and await self._lives(client, began):
                return Answer("", [], prompt_tokens, "error", f"{again} (after {calls} calls)")
            self._mind_patience(again)
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(calls - 1, 10)) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(wait, min(again.wait or 0.0, self._config.patience_s)))

    async def _lives(self, client: httpx2.AsyncClient, since: float) -> bool:
        """Whether the server has answered anything since, or does now: if not, the fault is not the request's."""
        if self._heard > since:
            return True
        try:
            await self._teacher.call(client, "GET", MODELS)
        except _Again as problem:
            return not problem.away
        except (_Rejected, InputError):
            return True
        return True

    def _back(self) -> None:
        if self._told:
            say(f"teach: the server at {self._config.url} answers again")
        self._heard, self._told = monotonic(), False

    def _mind_patience(self, problem: _Again) -> None:
        silent = monotonic() - self._heard
        if silent > self._config.patience_s:
            raise ConnectionError(f"no answer from the teacher's server for {silent:.0f} s: {problem} ({self._config.url}); run it again")
        if problem.away and not self._told:
            self._told = True
            say(f"teach: the server at {self._config.url} is away ({problem}); waiting up to {self._config.patience_s:g} s")
