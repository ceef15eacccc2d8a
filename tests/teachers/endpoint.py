"""A small OpenAI-compatible server on loopback that can misbehave, and a proxy that injects seeded faults before a real server."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import Self


@dataclass
class Reply:
    """What goes back, and how it goes wrong."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    keep: int | None = None
    """bytes of the body that are sent before the connection is closed"""
    copies: int = 1


@dataclass(frozen=True)
class Call:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def chat(text: str, reason: str = "stop") -> Reply:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return Reply(json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode())


def error(status: int, text: str = "", headers: dict[str, str] | None = None) -> Reply:
    """An error as OpenAI writes it."""
    return Reply(json.dumps({"error": {"message": text}}).encode(), status, headers or {})


class Endpoint:
    """Serves `handle` in a thread of its own. `calls` are all POSTs in order of arrival; `open` is how many are being answered."""

    def __init__(self, handle: Callable[[Call], Awaitable[Reply]], port: int = 0) -> None:
        self.calls: list[Call] = []
        self.open = self.most_open = 0
        self._handle, self._port = handle, port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=512))
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                call = await read_call(reader)
                if call.method == "POST":
                    self.calls.append(call)
                self.open += 1
                self.most_open = max(self.open, self.most_open)
                try:
                    await self._answer(writer, await self._handle(call))
                finally:
                    self.open -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        await asyncio.sleep(reply.delay)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(reply.body)), **reply.headers}
        head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        whole = head.encode() + (reply.body if reply.keep is None else reply.body[: reply.keep])
        writer.write(whole * reply.copies)
        await writer.drain()
        if reply.keep is not None:
            raise ConnectionError


async def read_call(reader: asyncio.StreamReader) -> Call:
    """One HTTP request with a Content-Length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    return Call(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


@contextmanager
def scripted(answer: Callable[[Any], Reply], models: list[str] | None = None) -> Iterator[Endpoint]:
    """An endpoint that lists `models` (none: no list at all) and answers every POST by `answer(body)`."""

    async def handle(call: Call) -> Reply:
        if call.method == "GET":
            listed = {"data": [{"id": name} for name in models or []]}
            return error(404) if models is None else Reply(json.dumps(listed).encode())
        return answer(call.json())

    with Endpoint(handle) as endpoint:
        yield endpoint


class FaultyProxy(Endpoint):
    """Forwards to a real server. A seeded share of the POSTs goes wrong; `faults` counts how, `wasted` what they cost the server.

    before the server: 429 (with Retry-After), 500, a call that is swallowed until the client gives up;
    after it: a cut body, a reply that comes too late, a reply sent twice.
    """

    KINDS = ("429", "500", "swallowed", "cut", "late", "twice")

    def __init__(self, upstream: int, seed: int, share: float, too_late_s: float) -> None:
        super().__init__(self._forward)
        self._upstream, self._share, self._too_late_s = upstream, share, too_late_s
        self._dice = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        """messages that have reached the server, and how often"""
        self.answered = self.wasted = 0

    async def _forward(self, call: Call) -> Reply:
        if call.method == "GET":
            return await self._ask(call)
        kind = self._dice.choice(self.KINDS) if self._dice.random() < self._share else ""
        self.faults[kind or "none"] += 1
        if kind == "429":
            return error(429, "slow down", {"Retry-After": "0.2"})
        if kind == "500":
            return error(500, "oops")
        if kind == "swallowed":
            return Reply(delay=2 * self._too_late_s)
        reply = await self._ask(call)
        if reply.status != 200:
            return reply
        self.answered += 1
        if kind in ("cut", "late"):
            self.wasted += 1
        if kind == "cut":
            reply.keep = self._dice.randrange(len(reply.body))
        elif kind == "late":
            reply.delay = 2 * self._too_late_s
        elif kind == "twice":
            reply.copies = 2
        return reply

    async def _ask(self, call: Call) -> Reply:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            raise ConnectionError from None
        try:
            head = f"{call.method} {call.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(call.body)}\r\n\r\n".encode() + call.body)
            await writer.drain()
            if call.method == "POST":
                self.sent[call.json()["messages"][0]["content"]] += 1
            status, _, rest = (await reader.readuntil(b"\r\n")).decode().partition(" ")[2].partition(" ")
            await reader.readuntil(b"\r\n\r\n") if rest else b""
            body = await reader.read()
            json.loads(body) if status == "200" else None  # the server may be killed in the middle of a reply
            return Reply(body, int(status))
        except (OSError, ValueError, asyncio.IncompleteReadError):
            raise ConnectionError from None
        finally:
            writer.close()
