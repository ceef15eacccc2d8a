"""Fixtures: a real MLflow store, and a run folder per test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.server import Server
from tests.tracking.store import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / f"run-{os.urandom(4).hex()}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()
