"""Files are read back as written, or refused with one line that names the damaged file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechkd.core.errors import DataError
from speechkd.core.files import read_json, read_json_lines

SEPARATORS = "a\u2028b\u2029c\u0085d"
"""Ends of lines to str.splitlines(), plain letters to JSON"""


def test_a_line_ends_only_where_a_line_ends(tmp_path: Path) -> None:
    rows = [{"answer": SEPARATORS}, {"answer": "\r\n"}, {}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_json_lines(path) == rows


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_names_its_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not readable as JSON.*state.json"):
        read_json(path)
    path.write_bytes(b"{}\n" + (data or b"{"))
    with pytest.raises(DataError, match="state.json, line 2"):
        read_json_lines(path)
