"""Bounds the memory of a Parquet file before it is read: a few kilobytes can decompress to a terabyte.

A reader allocates what each page header states, so page headers are summed; the footer's totals are not trusted. Text is read as
dictionaries, so that one long value shared by every row is measured before it is expanded.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOM, RATIO = 32 << 20, 64
"""Bytes in memory allowed for any file, plus RATIO bytes for each byte of the file"""
VALUES_PER_BYTE = 16
"""More values than this indicate a decompression bomb: real files hold digests or distinct keys"""
MAX_FIXED = 64
"""Largest fixed-length value, in bytes"""
DELTA_BYTE_ARRAY = 7
"""An encoding in which each value can extend the previous one, so sizes are unbounded"""

Struct = dict[int, Any]


def allowed(size: int) -> int:
    """Bytes in memory allowed for a file of `size` bytes."""
    return ROOM + RATIO * size


@dataclass(frozen=True, slots=True)
class Judged:
    """Result of the check of a file's pages."""

    problem: str | None
    """why the file must not be read; None if it may"""
    dictionary: int = 1
    """bytes of the largest dictionary: the upper bound of a value that rows share"""


def judge(path: Path, metadata: pq.FileMetaData, names: Collection[str] | None = None) -> Judged:
    """Check the page headers of the columns `names` (None: all), without decompressing."""
    size = path.stat().st_size
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _judge(data, size, metadata, names)
        except (IndexError, ValueError, KeyError, TypeError, RecursionError):
            return Judged("has pages that cannot be read")


def _judge(data: mmap.mmap, size: int, metadata: pq.FileMetaData, names: Collection[str] | None) -> Judged:
    if metadata.num_rows > VALUES_PER_BYTE * size:
        return Judged(f"says {metadata.num_rows} rows in {size} bytes")
    total, dictionary = 0, 1
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]  # a chunk reads its group, and does not hold it
    for number in range(metadata.num_columns):
        if names is not None and metadata.schema.column(number).path.partition(".")[0] not in names:
            continue
        if metadata.schema.column(number).physical_type == "FIXED_LEN_BYTE_ARRAY" and metadata.schema.column(number).length > MAX_FIXED:
            return Judged(f"has values of {metadata.schema.column(number).length} bytes each")
        values = 0
        for group in groups:
            chunk = group.column(number)
            for taken, count in _pages(data, chunk):
                total, values = total + taken, values + (count or 0)
                dictionary = max(dictionary, taken if count is None else 1)
        if total > allowed(size) or values > VALUES_PER_BYTE * size:
            most = f"allowed {allowed(size)} and {VALUES_PER_BYTE * size}"
            return Judged(f"says {total} bytes and {values} values in {size} bytes, {most}")
    return Judged(None, dictionary)


def _pages(data: mmap.mmap, chunk: pq.ColumnChunkMetaData) -> Iterator[tuple[int, int | None]]:
    """(bytes once unpacked, values; None: of a dictionary) of each page of a column chunk. Raises ValueError, IndexError for an invalid
    page."""
    if not chunk.num_values:  # an empty chunk need not have a data page
        return
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    while at < end:
        header, at = _struct(data, at)
        unpacked, packed = header[2], header[3]
        page = header.get(5) or header.get(8) or header.get(7) or {}
        if unpacked < 0 or packed < 0 or page.get(1, 0) < 0:
            raise ValueError("a page of negative size")
        if DELTA_BYTE_ARRAY == page.get(4 if 8 in header else 2):
            raise ValueError("an encoding without a bound")
        yield unpacked, None if 7 in header else page.get(1, 0)
        at += packed


def _struct(data: mmap.mmap, at: int) -> tuple[Struct, int]:
    """A struct of Thrift's compact protocol (parquet-format, PageHeader): (field -> number, struct or None; end offset)."""
    out: Struct = {}
    field = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _number(data, at)
        out[field], at = _value(data, at, head & 15)
    return out, at + 1


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # a boolean, encoded in its type
        return None, at
    if kind == 3:
        return None, at + 1
    if kind in (4, 5, 6):
        return _number(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _struct(data, at)
    raise ValueError(f"type {kind} in a page's header")


def _number(data: mmap.mmap, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number without end")


def text_columns(schema: pq.ParquetSchema) -> list[str]:
    """Columns of variable-length values, to be read as dictionaries. Pyarrow cannot do that inside structs and lists."""
    columns = [schema.column(number) for number in range(len(schema))]
    flat = [column for column in columns if column.max_repetition_level == 0 and column.path == column.name]
    return [column.name for column in flat if column.physical_type == "BYTE_ARRAY" and "." not in column.name]


def text_bytes(column: pa.ChunkedArray | pa.Array) -> int:
    """Bytes of a column's text with dictionaries expanded; 0 for other types."""
    total = 0
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        if pa.types.is_struct(chunk.type):
            total += sum(text_bytes(part) for part in chunk.flatten())
        elif pa.types.is_dictionary(chunk.type) and _is_text(chunk.type.value_type):
            lengths = pc.cast(pc.binary_length(chunk.dictionary), pa.int64())
            total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
        elif _is_text(chunk.type):
            total += pc.sum(pc.cast(pc.binary_length(chunk), pa.int64())).as_py() or 0
    return total


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
