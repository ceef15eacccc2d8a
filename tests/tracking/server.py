"""A real MLflow server that can be killed, with or without passwords, and a door in front of it that can be shut in several ways."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.request import urlopen

import psutil

from tests.tracking.store import Store

USER, PASSWORD = "admin", "canary-of-the-tracking-server"
TOO_MANY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Server:
    """A real `mlflow server` on loopback, which can be killed and started again. `password`: only USER with PASSWORD gets in."""

    def __init__(self, folder: Path, password: bool = False) -> None:
        self.store, self.folder, self._password = Store(folder / "server.db"), folder, password
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.store.uri, "--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        if self._password:
            settings = f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{self.folder}/auth.db\nadmin_username = {USER}\n"
            (self.folder / "auth.ini").write_text(settings + "auth_cache_ttl_seconds = 60\n")
            environment |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
                "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the test",
            }
            command += ["--app-name", "basic-auth"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        limit = time.monotonic() + 180
        while True:
            try:
                with urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < limit, (self.folder / "server.log").read_text()
                time.sleep(0.3)

    def step_aside(self) -> None:
        """Run it when nobody else wants a core: it stands for a server on another machine."""
        assert self.process is not None
        for process in (psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)):
            for thread in process.threads():
                os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))

    def kill(self) -> None:
        """Kill it and its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Door:
    """A port that passes connections on to a server, refuses them, never answers, or answers 429."""

    def __init__(self, target: int, state: Literal["open", "refuse", "silent", "429"]) -> None:
        self.state, self._target = state, target
        self.asked = 0
        self._through: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def shut(self) -> None:
        """Refuse visitors from now on, and throw out those inside."""
        self.state = "refuse"
        for end in self._through:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        held = []
        while True:
            visitor, _ = self._listener.accept()
            self.asked += 1
            if self.state == "open":
                inside = socket.create_connection(("127.0.0.1", self._target))
                self._through += [visitor, inside]
                for source, sink in ((visitor, inside), (inside, visitor)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()
            elif self.state == "silent":
                held.append(visitor)
            elif self.state == "429":
                visitor.recv(1 << 16)
                visitor.sendall(TOO_MANY)
                visitor.close()
            else:  # reset at once, as a port without a listener does
                visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                visitor.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def wait_for(pid: int, seconds: float) -> None:
    """Wait until process `pid` is gone."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there after {seconds} s")
