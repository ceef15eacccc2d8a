"""HTTP servers on loopback that behave as an MLflow in trouble does."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Reply = tuple[int, str]


class Server(http.server.ThreadingHTTPServer):
    """Answers each path as told, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self, replies: Mapping[str, Callable[[Mapping[str, str]], Reply]]) -> None:
        self.replies, self.headers_seen = replies, list[dict[str, str]]()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.headers_seen.append(dict(self.headers))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, text = self.server.replies.get(self.path, lambda headers: (404, "no such page"))(dict(self.headers))
        self.send_response(status)
        if status in (301, 302, 307, 308):
            self.send_header("Location", text)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def answering(replies: Mapping[str, Reply | Callable[[Mapping[str, str]], Reply]]) -> Iterator[Server]:
    """A server that gives these replies: (status, text), or a function of the request's headers."""
    server = Server({path: reply if callable(reply) else (lambda _, fixed=reply: fixed) for path, reply in replies.items()})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def silent(seconds: float) -> Callable[[Mapping[str, str]], Reply]:
    """Accepts, and says nothing for so long."""

    def wait(headers: Mapping[str, str]) -> Reply:
        time.sleep(seconds)
        return 200, "OK"

    return wait
