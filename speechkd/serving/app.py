"""The HTTP side of `speechkd serve`: OpenAI's chat and transcription endpoints, health and metrics, over FastAPI."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from speechkd.core.errors import InputError
from speechkd.core.log import say
from speechkd.data.audio.clips import RATE, decode_bytes, normalise
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.audio.raw import Rejected
from speechkd.data.training_range import TrainingRange, unlike
from speechkd.models.exported import Answered, DistilledStudent
from speechkd.serving.batcher import Batcher, Busy, Ending, Job
from speechkd.serving.bodies import Asked, parse_chat

GONE_S = 0.5
"""How often it is looked whether a client is still there"""


@dataclass(frozen=True, slots=True)
class Serving:
    """Limits and names of a server."""

    model: str
    """its name in `/v1/models`"""
    batch: int = 16
    waiting: int = 256
    max_bytes: int = 25 << 20
    """of a request's body"""
    max_tokens: int = 1024
    """of an answer"""
    default_tokens: int = 256
    transcribe: str | None = None
    """the question behind `/v1/audio/transcriptions`; None: no such endpoint"""
    key: str | None = None
    """clients must send it as `Authorization: Bearer KEY`"""
    trained_on: TrainingRange | None = None
    """one line in the server's log for each clip that is unlike it"""


class Refused(Exception):
    """An HTTP error in OpenAI's form."""

    def __init__(self, status: int, message: str, code: str = "invalid_request") -> None:
        self.status, self.message, self.code = status, message, code


class _Metrics:
    """Counts under names that Prometheus reads at `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on: Any = {"registry": self.registry}
        self.requests = Counter("speechkd_serve_requests", "Requests by path and status", ["path", "status"], **on)
        self.seconds = Histogram("speechkd_serve_request_seconds", "Time to the end of a request", ["path"], **on)
        self.waiting = Gauge("speechkd_serve_waiting", "Questions that wait for the model", **on)
        self.batch = Histogram("speechkd_serve_batch_size", "Questions answered together", buckets=(1, 2, 4, 8, 16, 32, 64), **on)
        self.audio = Counter("speechkd_serve_audio_seconds", "Sound that was asked about", **on)
        self.tokens = Counter("speechkd_serve_answer_tokens", "Tokens answered", **on)


def make_app(student: DistilledStudent, serving: Serving) -> FastAPI:
    """The server of one student. Its model thread ends with the application."""
    metrics = _Metrics()
    batcher = Batcher(student, serving.batch, serving.waiting, on_batch=metrics.batch.observe)
    metrics.waiting.set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    app = FastAPI(title="speechkd", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    endpoint = _Endpoint(student, serving, batcher, metrics)
    app.middleware("http")(endpoint.counted)
    app.exception_handler(Refused)(lambda _, error: _error(error.status, error.message, error.code))
    for status in (404, 405):
        app.exception_handler(status)(
            lambda request, error: _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        )
    app.get("/health")(endpoint.health)
    app.get("/metrics")(endpoint.metrics_page)
    app.get("/v1/models")(endpoint.models)
    app.post("/v1/chat/completions")(endpoint.chat)
    app.post("/v1/audio/transcriptions")(endpoint.transcribe)
    return app


class _Endpoint:
    """The endpoints of one server."""

    def __init__(self, student: DistilledStudent, serving: Serving, batcher: Batcher, metrics: _Metrics) -> None:
        self.student, self.serving, self.batcher, self.metrics = student, serving, batcher, metrics

    async def counted(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Checks the key; counts every request but those for health and metrics."""
        path, began = request.url.path, time.monotonic()
        if path in ("/health", "/metrics"):
            return await call_next(request)
        known = path if path in ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models") else "other"
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.serving.key is not None and not hmac.compare_digest(given.encode(), self.serving.key.encode()):
            response: Response = _error(401, "wrong or no key: send `Authorization: Bearer KEY`", "invalid_api_key")
        else:
            response = await call_next(request)
        self.metrics.requests.labels(known, str(response.status_code)).inc()
        self.metrics.seconds.labels(known).observe(time.monotonic() - began)
        return response

    async def health(self) -> Response:
        """200 while questions are answered, 503 after."""
        alive = self.batcher.alive
        return JSONResponse({"status": "ok" if alive else "ending"}, 200 if alive else 503)

    async def metrics_page(self) -> Response:
        """What Prometheus reads."""
        return PlainTextResponse(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    async def models(self) -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [{"id": self.serving.model, "object": "model", "owned_by": "speechkd"}]}

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        body = await self._body(request)
        try:
            asked = parse_chat(body)
        except InputError as error:
            raise Refused(400, str(error)) from None
        job = await self._job(asked)
        if asked.stream:
            return await self._stream(job)
        answer = await self._answer(job, request)
        return JSONResponse(self._completion(job, answer))

    async def transcribe(self, request: Request) -> Response:
        """`/v1/audio/transcriptions`: the server's own question about the file."""
        if self.serving.transcribe is None:
            raise Refused(404, "this server has no question for transcriptions: start it with --transcribe 'QUESTION'", "not_found")
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > self.serving.max_bytes:
            raise Refused(413, f"the body must say its length, at most {self.serving.max_bytes:,} bytes", "too_large")
        async with request.form(max_files=1, max_fields=20) as form:
            file, form_of = form.get("file"), str(form.get("response_format") or "json")
            if file is None or isinstance(file, str):
                raise Refused(400, "no sound: send it as the form's `file`")
            if form_of not in ("json", "text"):
                raise Refused(400, f"`response_format: {form_of[:20]}`: allowed: json, text")
            model = form.get("model")
            asked = Asked(str(model) if model else None, self.serving.transcribe, await file.read(), None)
        answer = await self._answer(await self._job(asked), request)
        return PlainTextResponse(answer.text) if form_of == "text" else JSONResponse({"text": answer.text})

    async def _body(self, request: Request) -> bytes:
        held = bytearray()
        async for part in request.stream():
            held += part
            if len(held) > self.serving.max_bytes:
                raise Refused(413, f"the body is larger than {self.serving.max_bytes:,} bytes", "too_large")
        return bytes(held)

    async def _job(self, asked: Asked) -> Job:
        """The question, checked, its sound decoded. Raises Refused."""
        if asked.model not in (None, self.serving.model):
            raise Refused(404, f"no model `{str(asked.model)[:80]}`; this server has `{self.serving.model}`", "model_not_found")
        most = asked.max_tokens or min(self.serving.default_tokens, self.serving.max_tokens)
        if most > self.serving.max_tokens:
            raise Refused(400, f"`max_tokens: {most}`: this server answers with at most {self.serving.max_tokens}")
        if self.batcher.waiting >= self.serving.waiting:
            raise _busy(Busy(f"{self.serving.waiting} questions wait already"))  # before any work is done for it
        clip_T = await run_in_threadpool(_listen, asked.audio, self.student.features.window_seconds)
        try:
            await run_in_threadpool(self.student.check_length, asked.question, clip_T.size, "question and clip")
        except InputError as error:
            raise Refused(400, str(error), "context_length_exceeded") from None
        if (warning := await run_in_threadpool(unlike, self.serving.trained_on, clip_T)) is not None:
            say(f"serve: {warning}")
        self.metrics.audio.inc(clip_T.size / RATE)
        return Job(clip_T, asked.question, most, asked.logprobs)

    async def _answer(self, job: Job, request: Request) -> Answered:
        """Wait for the answer, as long as the client does. Raises Refused."""
        waiting = asyncio.wrap_future(self._submit(job).answer)
        try:
            while not (await asyncio.wait([waiting], timeout=GONE_S))[0]:
                if await request.is_disconnected():
                    raise Refused(499, "the client is gone", "client_closed")
        finally:
            job.given_up.set()
        return self._result(waiting)

    async def _stream(self, job: Job) -> Response:
        """The answer in pieces, as server-sent events."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str]()

        def on_text(text: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        job = replace(job, on_text=on_text)
        waiting = asyncio.wrap_future(self._submit(job).answer)

        async def events() -> AsyncIterator[str]:
            number, said = f"chatcmpl-{uuid.uuid4().hex}", ""
            try:
                yield self._event(number, {"role": "assistant", "content": ""})
                while not waiting.done() or not pieces.empty():
                    getting = asyncio.ensure_future(pieces.get())
                    either: list[asyncio.Future[Any]] = [getting, waiting]
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if not getting.done():
                        getting.cancel()
                        continue
                    text = getting.result().rstrip("\ufffd")  # a character of several tokens is not yet whole
                    if text.startswith(said) and len(text) > len(said):
                        yield self._event(number, {"content": text[len(said) :]})
                        said = text
                try:
                    answer = self._result(waiting)
                except Refused as error:
                    yield f"data: {json.dumps(_body_of(error.message, error.code))}\n\n"
                    return
                if answer.text[len(said) :]:
                    yield self._event(number, {"content": answer.text[len(said) :]})
                yield self._event(number, {}, "stop" if answer.ended else "length")
                yield "data: [DONE]\n\n"
            finally:
                job.given_up.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    def _submit(self, job: Job) -> Job:
        try:
            self.batcher.submit(job)
        except Busy as error:
            raise _busy(error) from None
        return job

    def _result(self, waiting: asyncio.Future[Answered]) -> Answered:
        try:
            answer = waiting.result()
        except Busy as error:
            raise _busy(error) from None
        except InputError as error:
            raise Refused(400, str(error)) from None
        except Exception as error:
            raise Refused(500, f"the model failed: {type(error).__name__}", "internal_error") from error
        self.metrics.tokens.inc(len(answer.tokens))
        return answer

    def _event(self, number: str, delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": number, "object": "chat.completion.chunk", "created": int(time.time()), "model": self.serving.model}
        return f"data: {json.dumps({**chunk, 'choices': [choice]}, ensure_ascii=False)}\n\n"

    def _completion(self, job: Job, answer: Answered) -> dict[str, Any]:
        used = {"prompt_tokens": answer.prompt_positions, "completion_tokens": len(answer.tokens)}
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.serving.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": "stop" if answer.ended else "length",
                    "logprobs": None if job.logprobs is None else {"content": self._logprobs(answer, job.logprobs)},
                }
            ],
            "usage": {**used, "total_tokens": sum(used.values())},
        }

    def _logprobs(self, answer: Answered, k: int) -> list[dict[str, Any]]:
        if answer.logprobs_N is None or answer.top_NK is None:
            return []
        decode = self.student.prompt.tokenizer.decode

        def entry(token: int, value: float) -> dict[str, Any]:
            text = decode([token])
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        values_NK, ids_NK = (part[:, :k].tolist() for part in answer.top_NK)
        return [
            {**entry(token, value), "top_logprobs": [entry(i, v) for i, v in zip(ids, values, strict=True)]}
            for token, value, ids, values in zip(answer.tokens, answer.logprobs_N.tolist(), ids_NK, values_NK, strict=True)
        ]


def _listen(data: bytes, window_s: float) -> np.ndarray:
    """A sound file's content as 16 kHz mono, through the gate of the shards. Raises Refused."""
    clip = decode_bytes(data)
    heard = clip if isinstance(clip, Rejected) else normalise(clip, AudioLimits(max_seconds=window_s))
    if isinstance(heard, Rejected):
        raise Refused(400, f"cannot hear the sound: {heard.reason}", "invalid_audio")
    return heard


def _busy(reason: Busy) -> Refused:
    return Refused(503 if isinstance(reason, Ending) else 429, f"{reason}: try again later", "overloaded")


def _body_of(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": code, "param": None, "code": code}}


def _error(status: int, message: str, code: str = "invalid_request") -> JSONResponse:
    return JSONResponse(_body_of(message, code), status, headers={"Retry-After": "1"} if status in (429, 503) else None)
