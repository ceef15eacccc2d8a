"""Hugging Face datasets on disk: `save_to_disk` folders and Parquet files, read with pyarrow. No loading script is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from speechkd.core.errors import DataError, InputError, unknown_name
from speechkd.data.audio.clips import decode_bytes, decode_file
from speechkd.data.audio.raw import RawClip, Rejected, Span
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import Item, Unmatched
from speechkd.data.sources.hf_layout import stated_files
from speechkd.data.sources.paths import AudioFolder
from speechkd.data.sources.rows import RowConfig, check_row_fields, counted_key, row_item, span_of
from speechkd.data.sources.spans import channel_numbers, check_channels, span_of_row
from speechkd.data.storage.parquet_limits import ROOM, allowed, judge, text_bytes, text_columns

LIST_ROWS = 4096
"""Rows in memory at a time"""


class HfDiskConfig(RowConfig):
    """Columns of text, numbers and booleans are metadata; class labels become their names; structs are flattened (`a.b`).

    Without `key_field` the key is the row number, and the Parquet files are read once, in order. With other keys, each shard reads the row
    groups that contain its rows.
    """

    kind: Literal["hf_disk"]
    path: paths.PathBySplit
    """a `save_to_disk` folder (Dataset, or DatasetDict with its splits), or Parquet files, or split -> either"""
    columns: list[str] = []
    """columns to read besides key, split and audio; empty: all"""


class HfDiskSource:
    """Reads rows of Arrow and Parquet files."""

    Config = HfDiskConfig

    def __init__(self, config: HfDiskConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.config = config
        self.audio = AudioFolder(data_root, config)
        self.tables: list[tuple[str, Path]] = []
        for split, name in stated.named(config, config.path):
            self.tables += stated.one_each(list(stated_files(data_root, name)), split, data_root, name, config.split, "source.path")

    def items(self) -> list[Item]:
        """All rows, sorted by key; without reading audio. Raises InputError for an unknown column or a damaged file."""
        many_splits = len({split for split, _ in self.tables}) > 1
        numbers: dict[str, int] = {}
        channels: set[float] = set()
        items = []
        for number, (split, path) in enumerate(self.tables):
            labels = _class_labels(path)
            for row_number, row in self._rows(path):
                count = numbers[split] = numbers.get(split, 0) + 1
                named = {name: _class_name(labels.get(name), value) for name, value in row.items()}
                item = row_item(named, self.config, count, split, counted_key(count, split, many_splits), f"{path}, row {row_number}")
                items.append(replace(item, payload={"file": number, "row": row_number, **span_of_row(row, self.config)}))
                channels |= channel_numbers(row, self.config)
        columns = {name: None for _, path in self.tables for name in _table(path).schema.names}
        check_row_fields(self.config, columns, items, self.tables[0][1] if self.tables else "")
        check_channels(channels, self.config)
        return sorted(items, key=lambda item: item.key)

    def _rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.config
        schema = _table(path).schema
        lists = {name.split(".")[0] for name in config.first_of}  # the column of `answers.text` is `answers`
        for field in (config.audio_field, config.key_field, config.split_field, *config.span_fields, *config.columns, *lists):
            if field and "{" not in field and field not in schema.names:
                raise InputError(unknown_name("column", field, schema.names, str(path)))
        wanted = (
            {*config.columns, *lists, config.key_field, config.split_field, *config.span_fields} if config.columns else set(schema.names)
        )
        wanted.discard(config.audio_field)
        self.field_names |= wanted & set(schema.names) - config.used
        names = [field.name for field in schema if field.name in wanted and (field.name in lists or _is_plain(field.type))]
        row_number = 0
        for batch in _bounded(path, _table(path).batches(names)):
            for row in batch.to_pylist() if names else [{} for _ in range(batch.num_rows)]:
                yield row_number, row
                row_number += 1

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each row's audio: embedded bytes, or the file at its path below `root`. Rows of one file are read together."""
        if not self.config.audio_field:
            yield from (None for _ in items)
            return
        wanted_cells = [(item.payload["file"], item.payload["row"]) for item in items]
        cells: dict[tuple[int, int], Any] = {}
        for file in sorted({file for file, _ in wanted_cells}):
            rows = sorted(row for number, row in wanted_cells if number == file)
            for row, value in _table(self.tables[file][1]).cells(self.config.audio_field, rows):
                cells[file, row] = value
        for item, cell in zip(items, wanted_cells, strict=True):
            value, problem = cells.pop(cell), item.payload.get("problem")
            yield Rejected(problem) if problem and value is not None else self._decode(value, span_of(item.payload))

    def _decode(self, value: Any, span: Span) -> RawClip | Rejected | None:
        if value is None:
            return None
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, value)
        if isinstance(data, bytes) and data:
            return decode_bytes(data, span)
        if not isinstance(path, str) or not path:
            return Rejected(f"`{self.config.audio_field}` holds neither bytes nor a path")
        file = self.audio.find(path)
        return file if isinstance(file, Rejected) else decode_file(file, span)


class _Arrow:
    """A memory-mapped Arrow stream (as `save_to_disk` writes) or file."""

    def __init__(self, path: Path) -> None:
        source = pa.memory_map(str(path))
        try:
            self._batches = list(pa.ipc.open_stream(source))
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        if not self._batches:
            raise InputError(f"`{path}` holds no rows: leave it out (card: source.path)")
        self.schema = self._batches[0].schema

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, LIST_ROWS):
                yield batch.select(names).slice(start, LIST_ROWS) if names else batch.slice(start, LIST_ROWS)

    def cells(self, name: str, rows: list[int]) -> Iterator[tuple[int, Any]]:
        """(row, value) for sorted rows."""
        start = 0
        for batch in self._batches:
            for row in rows:
                if start <= row < start + batch.num_rows:
                    yield row, batch.column(name)[row - start].as_py()
            start += batch.num_rows


class _Parquet:
    """A Parquet file, read with bounded memory.

    Text stays dictionary-encoded and batches are small, so that a long value shared by many rows is never copied for all of them at once.
    """

    def __init__(self, path: Path) -> None:
        metadata = pq.read_metadata(path)
        judged = judge(path, metadata)
        if judged.problem:
            raise InputError(f"`{path}` {judged.problem}")
        self._path, self._batch_rows = path, max(1, min(LIST_ROWS, ROOM // judged.dictionary))
        self._file = pq.ParquetFile(path, metadata=metadata, read_dictionary=text_columns(metadata.schema))
        self.schema: pa.Schema = metadata.schema.to_arrow_schema()

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(self._batch_rows, columns=names)

    def cells(self, name: str, rows: list[int]) -> Iterator[tuple[int, Any]]:
        """(row, value) for sorted rows; a few rows are in memory at a time."""
        start = 0
        for group in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(group).num_rows
            if wanted := [row for row in rows if start <= row < start + count]:
                first = start
                for batch in _bounded(self._path, self._file.iter_batches(self._batch_rows, row_groups=[group], columns=[name])):
                    for row in wanted:
                        if first <= row < first + batch.num_rows:
                            yield row, batch.column(0)[row - first].as_py()
                    first += batch.num_rows
            start += count


def _bounded(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches of a file. Raises InputError once their text exceeds the limit for a file of this size."""
    size, text = path.stat().st_size, 0
    for batch in batches:
        text += sum(text_bytes(column) for column in batch.columns)
        if text > allowed(size):
            raise InputError(f"`{path}` holds more than {allowed(size)} bytes of text, the limit for a file of {size} bytes")
        yield batch


@lru_cache(maxsize=4)
def _table(path: Path) -> _Arrow | _Parquet:
    try:
        return _Parquet(path) if path.suffix == ".parquet" else _Arrow(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read `{path}`: {str(error).splitlines()[0]}") from None


def _class_labels(path: Path) -> dict[str, list[str]]:
    """column -> class names, from the features that `datasets` writes into the schema."""
    raw = (_table(path).schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(raw)["info"]["features"] if raw else {}
        found = {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
        if all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found.values()):
            return found
        raise ValueError("class names must be texts")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path}: its `huggingface` features metadata cannot be read") from None


def _class_name(names: list[str] | None, value: Any) -> Any:
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None  # datasets writes -1 for hidden test labels


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column can be metadata: text, numbers, booleans, or a struct of them; a struct with `bytes` is audio or an image."""
    if pa.types.is_struct(kind):
        return any(_is_plain(kind.field(i).type) for i in range(kind.num_fields)) and not any(
            kind.field(i).name == "bytes" for i in range(kind.num_fields)
        )
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    return text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
