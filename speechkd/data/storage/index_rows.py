"""Index rows by shard, loaded on demand, so that memory does not grow with the corpus."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechkd.core.errors import DataError
from speechkd.data.storage.files import Files
from speechkd.data.storage.parquet_limits import allowed, judge, text_bytes, text_columns

SHARDS_KEPT = 64
"""Shards kept in memory per index: those of a plan's window and a few earlier ones"""

Rows = dict[str, list[Any]]


class ShardRows:
    """Rows of a version or column by global row number. `read` returns the checked index table of one shard."""

    def __init__(self, counts: Sequence[int], read: Callable[[int], pa.Table]) -> None:
        """counts: number of rows per shard."""
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        """first row of each shard, and the number of rows: int64 [shards + 1]"""
        self._read = read
        self._kept: OrderedDict[int, Rows] = OrderedDict()
        self._lock = Lock()

    def find(self, row: int) -> tuple[int, int, Rows]:
        """(shard, row within the shard, all rows of that shard) for a global row number."""
        if not 0 <= row < self.starts[-1]:
            raise IndexError(row)
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return shard, row - int(self.starts[shard]), self.of_shard(shard)

    def of_shard(self, shard: int) -> Rows:
        """All rows of a shard, as lists by column."""
        with self._lock:  # several threads read; one of them opens the file
            if shard not in self._kept:
                self._kept[shard] = self._read_shard(shard)
                if len(self._kept) > SHARDS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(shard)
            return self._kept[shard]

    def _read_shard(self, shard: int) -> Rows:
        table, count = self._read(shard), int(self.starts[shard + 1] - self.starts[shard])
        if len(table) != count or any(column.null_count for column in table.columns):
            raise DataError(f"index of shard {shard} has {len(table)} rows, or rows with nulls; the manifest lists {count} rows")
        return table.to_pydict()


def read_columns(files: Files, name: str, columns: Sequence[str] | None, repeated: Sequence[str]) -> pa.Table:
    """Columns of a Parquet file (None: all), `repeated` ones as dictionaries, after checking its sha256. Raises DataError.

    Only the requested columns are loaded: an index of millions of rows is mostly digests.
    """
    where, size = files.where(name), files.entries[name]["bytes"]
    with files.checked(name) as stream, pa.OSFile(stream.name) as source:  # Python's file object takes five times as long
        try:
            metadata = pq.read_metadata(source)
            present = metadata.schema.to_arrow_schema().names
            wanted = present if columns is None else list(columns)
            missing = set(wanted) - set(present)
            if missing:
                raise DataError(f"{where}: has no column `{min(missing)}`")
            problem = judge(Path(stream.name), metadata, wanted).problem
            if problem:
                raise DataError(f"{where}: {problem}")
            table = pq.ParquetFile(source, metadata=metadata, read_dictionary=text_columns(metadata.schema)).read(columns=wanted)
            text = sum(text_bytes(column) for column in table.columns)
            if text > allowed(size):
                raise DataError(f"{where}: says {text} bytes of text in {size} bytes, allowed {allowed(size)}")
            for number, field in enumerate(table.schema):
                if pa.types.is_dictionary(field.type) and field.name not in repeated:
                    plain = field.with_type(field.type.value_type)
                    table = table.set_column(number, plain, table.column(number).cast(plain.type))
            return table
        except (pa.ArrowException, OSError) as error:  # pyarrow raises either for an unparsable file
            raise DataError(f"{where}: cannot be read ({str(error).splitlines()[0]})") from None
