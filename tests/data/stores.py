"""Real servers on loopback for stores: an S3 endpoint (moto) and a file server that counts, breaks and delays what it is told to."""

from __future__ import annotations

import functools
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec


class FileServer(http.server.ThreadingHTTPServer):
    """Serves a folder; `spoil` may change what a GET answers."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.gets: Counter[str] = Counter()
        self.spoil: Callable[[str, bytes], bytes] = lambda name, data: data
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            super().do_GET()
            return
        if not path.is_file():
            self.send_error(404)
            return
        self.server.gets[path.name] += 1
        whole = path.read_bytes()
        data = self.server.spoil(path.name, whole)
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(data)
        if len(data) < len(whole):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    """A file server on loopback."""
    server = FileServer(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def s3_server() -> Iterator[int]:
    """moto's S3 server as a process of its own; its port. The environment points boto at it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    server = subprocess.Popen(
        [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None, "moto_server did not start"
                time.sleep(0.05)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # what it kept talks to another server's port
        yield port
    finally:
        server.kill()
        server.wait()


def s3_environment(port: int) -> dict[str, str]:
    """What makes boto and s3fs talk to the server on `port`."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_CONFIG_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
