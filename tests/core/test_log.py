"""Progress: a bar on a terminal, plain lines in log files, nothing when quiet; the items pass through unchanged."""

from __future__ import annotations

import sys

import pytest

from speechkd.core import log


def test_a_log_file_gets_a_line_an_interval_and_one_at_the_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "INTERVAL_S", 0.0)
    assert list(log.progress(iter("ab"), "train", total=5, start=3)) == ["a", "b"]
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("train: 4/5, ") and second.startswith("train: 5/5, ") and last.startswith("train: 5/5 done in 0:00")


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert list(log.progress(range(4), "teach", total=4)) == [0, 1, 2, 3]
    output = capsys.readouterr().err
    assert "teach" in output and "4/4" in output and "done in" not in output


def test_other_ranks_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(log.progress([1], "train", quiet=True)) == [1] and not any(capsys.readouterr())
