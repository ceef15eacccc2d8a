"""Files are read back as written, or refused with one line that names the damaged file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import exclusive, read_json, read_json_lines

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


def test_a_lock_that_is_held_names_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from speechkd.core.files import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 0.0, 'busy'):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"busy \\(pid {holder.pid} on host "), exclusive(tmp_path / "lock", 0.0, "busy"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with exclusive(tmp_path / "lock", 0.0, "busy"):
        assert (tmp_path / "lock").read_text().startswith(f"pid {os.getpid()} on host ")
