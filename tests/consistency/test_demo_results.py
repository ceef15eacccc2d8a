"""The demo's tables are of a recorded run, and that run is of this code."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from tests.consistency.house import ROOT

sys.path.insert(0, str(ROOT / "pipelines"))
import record_demo  # noqa: E402
from record_demo import COLUMNS, RESULTS, TABLES, code_digest, lines_of, table_lines  # noqa: E402


@pytest.fixture
def recorded() -> dict[str, Any]:
    if not RESULTS.is_file():
        pytest.skip("no run is recorded: make demo && make record")
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


@pytest.mark.parametrize("document", TABLES)
def test_the_table_is_the_recorded_runs(recorded: dict[str, Any], document: str) -> None:
    assert lines_of(document) == table_lines(recorded["tasks"], TABLES[document])


def test_the_recorded_run_is_of_a_commit_and_of_this_code(recorded: dict[str, Any]) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", recorded["commit"]) and not recorded["changed"]
    assert recorded["code"] == code_digest(), "training, scoring or the recipe changed since: make demo && make record"


def test_the_digest_follows_the_code_and_not_its_words() -> None:
    meaning = record_demo._meaning
    plain = 'def f(x):\n    """Says."""\n    return x + 1  # why\n'
    assert meaning(plain) == meaning('"""Module."""\ndef f(x):\n    return x + 1\n') != meaning(plain.replace("1", "2"))
    assert len(code_digest()) == 64


def test_a_table_shows_what_was_measured() -> None:
    row = {"student": 0.5744, "unseen": None, "teacher": 1.0, "untrained": 0.0, "shuffled": -0.087, "chance": 0.03}
    rows = table_lines(dict.fromkeys(("language", "gender", "rate", "digits"), row), COLUMNS)
    assert rows[3] == "| digit words | 57.4 | – | 100.0 | 0.0 | -8.7 | 3.0 |"
    assert all(len(lines_of(document)) == 4 and lines_of(document)[3].startswith("| digit words |") for document in TABLES)
