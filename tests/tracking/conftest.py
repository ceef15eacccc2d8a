"""Fixtures: a real MLflow store per test file, and a run folder per test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tracking.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / f"run-{os.urandom(4).hex()}"
