"""The kernels' tests run Triton's kernels in its interpreter, on the CPU."""

from __future__ import annotations

import pytest


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton interprets the kernels that are loaded from here on; tests/conftest.py has loaded Triton itself so."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
