"""Backend `openai_http`: any OpenAI-compatible server (vLLM, SGLang, `transformers serve`, a hosted endpoint).

Bounded concurrency, a timeout per call, retries with jitter that honour Retry-After. Requests are sent sorted by message, so that a
server's prefix cache can reuse shared prefixes. Every call opens its own connection, so a reply that is sent twice is never taken for the
reply to the next call. Redirects are not followed and proxy variables are ignored: data goes only to the named server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import Field, field_validator, model_validator

from speechkd.core.errors import InputError, unknown_name
from speechkd.data.audio.clips import encode_wav
from speechkd.data.columns.signals import SignalsConfig
from speechkd.models.prompt import Prompt
from speechkd.teachers import calls
from speechkd.teachers.alike import Alike
from speechkd.teachers.base import Answer, Request, ScoringConfig, require_temperature_one
from speechkd.teachers.calls import Calls, RequestRefused, RetryLater, RetryPolicy
from speechkd.teachers.openai_reply import BadReply, error_text, read_answer, read_top_k, retry_after
from speechkd.teachers.prompts import audio_span_text, has_audio

if TYPE_CHECKING:
    from torch import Tensor

MAX_REPLY = 64 << 20
CONNECT_S = 10.0
MASK = "***"
T = TypeVar("T")
MODELS = "/models"
OWN_KEYS = frozenset("model messages prompt max_tokens max_completion_tokens temperature top_p seed stream n echo prompt_logprobs".split())
"""keys of a request that the backend sets itself, or that change the reply's form"""


class OpenAIHttpConfig(ScoringConfig):
    """`url`: the API's base address without `/chat/completions`, e.g. `http://node7:8000/v1`; `model`: its name on the server.

    `fields`: metadata fields that the teacher reads, in this order; missing ones are skipped. The API key is read only from the environment
    variable named by `key_env`. Raise `revision` when the model behind the server changes: it is part of the column's identity.
    """

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset({"url", "key_env", "concurrency", "timeout_s", "retries", "patience_s", "limit_key"})

    backend: Literal["openai_http"] = "openai_http"
    url: str
    model: str
    revision: str = ""
    fields: list[str]
    audio: bool = False
    """send the clip itself, inline as WAV, in place of metadata: for speech LLMs behind vLLM or SGLang; `fields` must then be empty"""
    api: Literal["chat", "completions"] = "chat"
    """chat: the server applies its own chat template; completions: it gets the student's prompt as token ids (vLLM, SGLang)"""
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    extra: dict[str, Any] = {}
    """further keys of the request, for what a server offers beyond the common ones: `{chat_template_kwargs: {enable_thinking: false}}`,
    `{repetition_penalty: 1.0}` (vLLM takes it from the model's generation_config.json otherwise)"""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """the request's name for `max_new_tokens`; OpenAI's reasoning models take only the second"""
    signals: SignalsConfig = SignalsConfig()
    """only `topk`, from servers that score given text (vLLM's `prompt_logprobs`, with `--max-logprobs` at least k)"""
    vocab_size: int | None = Field(None, ge=1)
    """number of the model's output ids, if larger than the tokenizer; needed only for `topk`"""
    key_env: str | None = None
    concurrency: int = Field(32, ge=1, le=4096)
    timeout_s: float = Field(120.0, gt=0)
    """limit for one call, from sending to the last byte of the reply"""
    retries: int = Field(5, ge=0)
    """calls after the first; if all fail while the server works, the request is stored as an error with its reason"""
    patience_s: float = Field(600.0, ge=0)
    """longest outage before the stage stops; run the same command to continue"""

    def identity(self) -> dict[str, Any]:
        """As for every backend; without `extra` where it is empty."""
        return {name: value for name, value in super().identity().items() if name != "extra" or value}

    def metadata_fields(self) -> list[str]:
        """As the block says."""
        return self.fields

    def answer_limit(self) -> int | None:
        """As the block says."""
        return self.max_new_tokens

    def output_width(self) -> int:
        """`vocab_size` if given, otherwise 0."""
        return self.vocab_size or 0

    def positions_per_s(self) -> float:
        """With `audio`: one every 40 ms, as for Qwen2-Audio."""
        return 25.0 if self.audio else 0.0

    @model_validator(mode="after")
    def _audio_or_text(self) -> OpenAIHttpConfig:
        if self.audio and (self.fields or self.api != "chat" or self.signals.names):
            wrong = "fields" if self.fields else "api: completions" if self.api != "chat" else "signals"
            raise ValueError(f"`audio: true` sends the clip in a chat message and nothing else: leave `{wrong}` out (fields: [])")
        return self

    @field_validator("extra")
    @classmethod
    def _keys_of_its_own(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(extra.keys() & OWN_KEYS):
            raise ValueError(f"must not hold `{taken[0]}`: the block's own keys set it, or the answer could not be read")
        return extra

    @field_validator("signals")
    @classmethod
    def _as_served(cls, signals: SignalsConfig) -> SignalsConfig:
        return require_temperature_one(signals, "a server's")

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
    """Streams answers, tokenized by the student's tokenizer. A failed request gives an error answer with a reason."""

    Config = OpenAIHttpConfig
    SIGNALS = frozenset({"response", "topk"})

    def __init__(self, config: OpenAIHttpConfig, prompt: Prompt) -> None:
        """Raises InputError for a missing key, a server that is unreachable or refuses the key, a model that it does not list, and signals
        that it cannot give."""
        self.config, self.prompt = config, prompt
        self._key = _Key(config.key_env)
        self._alike = Alike(config.url)
        self._tls = httpx2.create_ssl_context()
        asyncio.run(self._check_server())
        if config.signals.topk is not None:
            asyncio.run(self._check_scores(config.signals.topk.k))

    def accepts(self, request: Request) -> bool:
        """Every request; with `audio`, only turns with audio whose clip is there."""
        return not self.config.audio or (request.clip is not None and has_audio(request.turn))

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests, in request order."""
        answers = dict(pair for batch in self.stream(requests, ()) for pair in batch)
        return [answers[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request], done: Collection[int]) -> Iterator[list[tuple[int, Answer]]]:
        """Yield answers as they arrive, a few at a time. A slot sends its next request only after the consumer asks for more.

        Raises InputError if the server refuses key, model or path; ConnectionError after an outage longer than `patience_s`.
        """
        messages = {number: self._message(request) for number, request in enumerate(requests) if number not in done}
        client = self.client()

        async def attempt(number: int) -> Answer:
            path, body, prompt_tokens = self.body(requests[number])
            reply = await self.call(client, "POST", path, body)
            return _read(lambda: read_answer(reply, self.prompt, prompt_tokens))

        def failed(number: int, reason: str) -> Answer:
            return Answer("", [], len(self._prompt(requests[number])), "error", reason)

        order = sorted(messages, key=lambda number: (messages[number], number))
        made = Calls(self._policy, order, attempt, failed, lambda: self._server_alive(client), client.aclose).run()
        yield from self._alike.checked(made, begun=bool(done))

    def score(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Mapping[str, Tensor]]:
        """Top-k of given answers, from the server's log-probs of prompt and answer. Raises InputError if it cannot score one."""
        from speechkd.data.columns.signals import encode_topk

        store = self.config.signals.topk
        assert store is not None, "only called where signals are declared"
        out: list[Mapping[str, Tensor]] = [{} for _ in requests]
        vocabulary = max(len(self.prompt.tokenizer), self.config.output_width())
        prompts = [self._prompt(request) for request in requests]
        order = sorted((i for i, answer in enumerate(answers) if answer.stop != "error" and answer.tokens), key=lambda i: prompts[i])
        client = self.client()

        async def attempt(number: int) -> Mapping[str, Tensor]:
            import torch

            tokens = answers[number].tokens
            reply = await self.call(client, "POST", "/completions", self._scoring_body([*prompts[number], *tokens], store.k))
            arrays = _read(lambda: read_top_k(reply, len(prompts[number]), tokens, store.k, vocabulary))
            ids_TK, logp_TK, tail_T = (torch.from_numpy(array) for array in arrays)
            return {"topk": encode_topk(store, ids_TK, logp_TK, tail_T, vocabulary)}

        def failed(number: int, reason: str) -> Mapping[str, Tensor]:
            raise InputError(f"the server cannot score the answer to `{requests[number].key}`: {reason} ({self.config.url})")

        for batch in Calls(self._policy, order, attempt, failed, lambda: self._server_alive(client), client.aclose).run():
            for number, signals in batch:
                out[number] = signals
        return out

    def _scoring_body(self, ids: list[int], k: int) -> dict[str, Any]:
        return {"model": self.config.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": k}

    @property
    def _policy(self) -> RetryPolicy:
        config = self.config
        return RetryPolicy(config.url, config.concurrency, config.retries, config.patience_s)

    def _prompt(self, request: Request) -> list[int]:
        return self.prompt.teacher(request.question, self._span_text(request))

    def _message(self, request: Request) -> str:
        return self.prompt.message(request.question, self._span_text(request))

    def _span_text(self, request: Request) -> str:
        return "" if self.config.audio else audio_span_text(request, self.config.fields)

    def _content(self, request: Request) -> str | list[dict[str, Any]]:
        """The user's message: a text, or the text before the clip, the clip, and the text after it."""
        if not self.config.audio:
            return self._message(request)
        assert request.clip is not None, "only turns with a clip are accepted"
        sound = {"data": base64.b64encode(encode_wav(request.clip.load())).decode("ascii"), "format": "wav"}
        before, after = self.prompt.around(request.question)
        texts: list[list[dict[str, Any]]] = [[{"type": "text", "text": text}] if text else [] for text in (before, after)]
        return [*texts[0], {"type": "input_audio", "input_audio": sound}, *texts[1]]

    def body(self, request: Request) -> tuple[str, dict[str, Any], int]:
        """Path, JSON body and prompt length (in the student's tokens) for one request."""
        config = self.config
        prompt = self._prompt(request)
        body: dict[str, Any] = {**config.extra, "model": config.model, config.limit_key: config.max_new_tokens}
        body |= {"temperature": config.temperature}
        body |= {"top_p": config.top_p} if config.top_p < 1 else {}
        body |= {"seed": config.seed} if config.seed is not None else {}
        if config.api == "chat":
            return "/chat/completions", {**body, "messages": [{"role": "user", "content": self._content(request)}]}, len(prompt)
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
        """Make one call and parse the reply. Raises RetryLater, RequestRefused or InputError; no result or error contains the key."""
        name = str(uuid.uuid4())
        try:
            async with asyncio.timeout(self.config.timeout_s):
                headers = {"X-Request-Id": name, "Accept-Encoding": "identity"}
                async with client.stream(method, self.config.url + path, json=body, headers=headers) as response:
                    data = bytearray()
                    async for chunk in response.aiter_bytes():
                        data += chunk
                        if len(data) > MAX_REPLY:
                            raise RetryLater("the reply is too long")
                    if response.headers.get("X-Request-Id", name) != name:
                        raise RetryLater("the reply is to another call")
                    return self._judge(
                        response.status_code, response.headers.get("Retry-After"), self._key.masked(data.decode("utf-8", "replace")), path
                    )
        except (TimeoutError, httpx2.TimeoutException) as error:
            unreachable = isinstance(error, httpx2.ConnectTimeout)
            raise RetryLater(f"no reply within {self.config.timeout_s:g} s", unreachable=unreachable) from None
        except httpx2.ConnectError as error:
            raise RetryLater(self._key.masked(str(error)) or "no connection", unreachable=True) from None
        except httpx2.HTTPError as error:
            raise RetryLater(f"the reply broke off ({type(error).__name__})") from None

    def _judge(self, status: int, wait: str | None, data: str, path: str) -> Any:
        where = f"({self.config.url}{path})"
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        message = error_text(body)
        if status in (401, 403):
            key = f"key of `{self.config.key_env}`" if self.config.key_env else "call without a key; name its variable in `key_env`"
            raise InputError(f"the server refuses the {key}: {status} {message} {where}")
        if status == 404 and path == MODELS:
            raise RequestRefused("no list of models")
        if status == 404 or 300 <= status < 400:
            raise InputError(f"the server answers {status} {message}: wrong `url` or `model` {where}")
        if status == 429 and "insufficient_quota" in data:
            raise InputError(f"the server's quota is used up: {message}; raise it, and the same command goes on {where}")
        if status in (408, 409, 425, 429) or status >= 500:
            seconds = retry_after(wait)
            raise RetryLater(f"{status} {message}".strip(), wait=seconds, counts=status != 429)
        if status >= 400:
            raise RequestRefused(f"{status} {message}".strip())
        if not isinstance(body, dict):
            streamed = data.lstrip().startswith((":", "data:", "event:"))
            raise RetryLater("the reply is not JSON, but a stream that was not asked for" if streamed else "the reply is not JSON")
        return body

    async def _check_server(self) -> None:
        """Check that the server is reachable, and that it lists the model if it lists any."""
        url = self.config.url
        async with self.client() as client:
            for last in (False, False, True):
                try:
                    listed = await self.call(client, "GET", MODELS)
                    break
                except RetryLater as problem:
                    if problem.unreachable and last:
                        raise InputError(f"cannot reach the teacher's server: {problem} ({url}: teachers.url)") from None
                    if not problem.unreachable:  # it works, but does not list models
                        return
                    await asyncio.sleep(2 * calls.FIRST_WAIT_S)
                except RequestRefused:
                    return
        entries = listed.get("data")
        names = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry] if isinstance(entries, list) else []
        if names and self.config.model not in names:
            raise InputError(unknown_name("model", self.config.model, names, f"{url} lists these"))

    async def _check_scores(self, k: int) -> None:
        """Score two tokens first, so that missing support is found before any answer is paid for."""
        ids = self.prompt.answer("a a")
        try:
            async with self.client() as client:
                reply = await self.call(client, "POST", "/completions", self._scoring_body(ids, k))
            read_top_k(reply, 1, ids[1:], k, max(len(self.prompt.tokenizer), self.config.output_width()))
        except (RetryLater, RequestRefused, BadReply) as problem:
            raise InputError(
                f"the server gives no top-{k} log-probs of given text ({problem}): vLLM does, started with `--max-logprobs {k}`; "
                f"otherwise leave `signals` out or use hf_local ({self.config.url})"
            ) from None

    async def _server_alive(self, client: httpx2.AsyncClient) -> bool:
        """Whether the server itself works (a live gateway before it is not enough); if not, a failed call is not its request's fault."""
        root = urlsplit(self.config.url)
        try:
            async with asyncio.timeout(min(CONNECT_S, self.config.timeout_s)):  # a server that hangs counts as unreachable
                if (await client.get(f"{root.scheme}://{root.netloc}/health")).status_code == 200:  # vLLM, SGLang, transformers serve
                    return True
                await self.call(client, "GET", MODELS)
        except (RetryLater, httpx2.HTTPError, TimeoutError):
            return False
        except (RequestRefused, InputError):
            return True
        return True


def _read(parse: Callable[[], T]) -> T:
    """The result of `parse`; a malformed reply raises RetryLater."""
    try:
        return parse()
    except BadReply as problem:
        raise RetryLater(str(problem)) from None


class _Key(httpx2.Auth):
    """The API key, read once from the environment and never shown."""

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
        """The server's `text` with the key masked, in case the server echoes it."""
        return text.replace(self._value, MASK) if self._value else text
