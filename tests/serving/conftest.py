"""One export of a tiny student with LoRA, and its server in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from speechkd.models.exported import DistilledStudent, load_student
from speechkd.models.lora import LoraConfig
from speechkd.serving.app import Serving, make_app
from tests.cluster.ports import free_port
from tests.teachers.speech_models import write_student

Served = Callable[..., "contextmanager[str]"]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lora = LoraConfig(r=4, alpha=8.0, targets=["q_proj", "v_proj", "down_proj"])
    return write_student(tmp_path_factory.mktemp("serving") / "student", lora)


@pytest.fixture(scope="session")
def student(export: Path) -> DistilledStudent:
    return load_student(export)


@contextmanager
def served(student: DistilledStudent, serving: Serving) -> Iterator[str]:
    """A real server on loopback; yields its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(make_app(student, serving), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < end and thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def url(student: DistilledStudent) -> Iterator[str]:
    with served(
        student, Serving(model="student", max_bytes=2 << 20, max_tokens=64, default_tokens=12, transcribe="What is said?")
    ) as found:
        yield found
