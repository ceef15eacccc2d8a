"""Parquet bombs are told from what people write, by their pages, before anything is unpacked."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import sha256_file
from speechkd.data.sources.hf_disk import HfDiskConfig, HfDiskSource
from speechkd.data.storage.files import Files
from speechkd.data.storage.index_rows import read_columns
from speechkd.data.storage.parquet_limits import allowed, judge, text_bytes, text_columns
from tests.faults.hostile_archives import delta, repeated, write_parquet


def read(path: Path) -> pa.Table:
    """As an index is read."""
    entry = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    return read_columns(Files(path.parent, "", {path.name: entry}), path.name, None, [])


def rows_of(path: Path) -> int:
    """As a corpus is listed."""
    return len(HfDiskSource(HfDiskConfig(kind="hf_disk", path=path.name, audio_field="", key_field="id"), path.parent).items())


@pytest.mark.parametrize("options", [{}, {"compression": "none", "use_dictionary": False}, {"version": "1.0"}, {"row_group_size": 700}])
@pytest.mark.parametrize("pages", ["1.0", "2.0"])
def test_ordinary_files_pass_and_are_measured(options: dict[str, object], pages: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    words = [f"word {number % 7}" * (number % 5) for number in range(2000)]
    cells = [{"bytes": bytes([number % 256]) * 50, "path": str(number)} for number in range(2000)]
    table = pa.table({"id": [f"k{n}" for n in range(2000)], "n": np.arange(2000), "w": words, "c": cells, "l": [["a", "bc"]] * 2000})
    pq.write_table(table, path, data_page_version=pages, **options)
    metadata = pq.read_metadata(path)
    assert judge(path, metadata).problem is None and text_columns(metadata.schema) == ["id", "w"]
    found = read(path)
    assert found.equals(table) and text_bytes(found["w"]) == sum(map(len, words)) and text_bytes(found["n"]) == 0
    assert text_bytes(found["c"]) == sum(50 + len(str(number)) for number in range(2000))
    assert rows_of(path) == 2000


def test_a_text_stored_once_and_used_by_every_row_is_not_multiplied(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, repeated(100_000, 1 << 16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"x.parquet: says 655\d+ bytes of text in \d+ bytes, allowed"):
        read(path)
    with pytest.raises(InputError, match="x.parquet` holds more than .* bytes of text"):
        rows_of(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10


def test_a_huge_page_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, repeated(1, 40 << 20))
    assert path.stat().st_size < 100_000 and allowed(path.stat().st_size) < 40 << 20
    with pytest.raises(DataError, match="says 4194.* bytes and 2 values in|says 4194.* bytes and 1 values in"):
        read(path)
    with pytest.raises(InputError, match="says 4194"):
        rows_of(path)


def test_an_encoding_without_a_bound_is_refused(tmp_path: Path) -> None:
    delta(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="x.parquet: has pages that cannot be read"):
        read(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="has pages that cannot be read"):
        rows_of(tmp_path / "x.parquet")


def test_damaged_pages_are_one_line(tmp_path: Path) -> None:
    """Any byte of a page's header may be wrong; no error but the two that say so leaves."""
    path, draw = tmp_path / "x.parquet", np.random.default_rng(0)
    pq.write_table(pa.table({"id": [f"k{number}" for number in range(50)]}), path, compression="none")
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        data[int(draw.integers(4, len(data) - 8))] = int(draw.integers(256))
        path.write_bytes(data)
        try:
            read(path)
        except DataError as error:
            assert "\n" not in str(error)
