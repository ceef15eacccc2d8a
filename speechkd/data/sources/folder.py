"""A folder of audio files, with metadata in the path, in a sidecar file per clip, or in one table."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths
from speechkd.data.sources.base import Item
from speechkd.data.sources.csv_table import TableFormat, read_table, valid_regex
from speechkd.data.sources.paths import AudioFolder, AudioPaths
from speechkd.data.sources.rows import parse_object, read_files, read_jsonl, scalars
from speechkd.data.storage.names import clean_name

MAX_SIDECAR = 1 << 20


class FolderConfig(AudioPaths):
    """Every audio file below `root` is a sample; with `pattern`, only paths that it matches."""

    kind: Literal["folder"]
    suffixes: list[str] = Field(default=["flac", "wav", "mp3", "ogg", "opus"], min_length=1)
    pattern: str = ""
    """regular expression over the path below `root`; its named groups are fields: `(?P<speaker>[A-Z]+)_(?P<emotion>[a-z]+)\\d+\\.wav`"""
    key_field: str = ""
    """a named group or a column; empty: the path without suffix, with `_` for `/`"""
    split_field: str = ""
    """a named group or a column"""
    split: str = "train"
    sidecars: list[Literal["json", "txt"]] = []
    """sidecar files: `<clip>.json` is an object of metadata, `<clip>.txt` is the field `text`"""
    metadata: str = ""
    """table below `root` (.csv, .tsv, .jsonl) with paths in `file_name`, as in HF `audiofolder`; files not listed are skipped"""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return valid_regex(pattern)


class FolderSource:
    """Reads the audio files below one folder. Links to folders are not followed."""

    Config = FolderConfig

    def __init__(self, config: FolderConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.config = config
        self.audio = AudioFolder(data_root, config)
        self.table = paths.file(data_root, str(Path(config.root, config.metadata)), "source.metadata") if config.metadata else None

    def items(self) -> list[Item]:
        """All clips, sorted by key. Raises InputError if a table or a sidecar cannot be read."""
        names = sorted(self._names())
        rows = {}
        if self.table:
            rows, present = _table(self.table), set(names)
            if missing := next((name for name in rows if name not in present), None):
                raise InputError(f"`{missing}` is listed in {self.table} but not found below `{self.audio.path}`")
        pattern = re.compile(self.config.pattern)
        items = []
        for name in names:
            match = pattern.search(name)
            if match and (self.table is None or name in rows):
                items.append(self._item(name, match.groupdict(), rows.get(name, {})))
        return sorted(items, key=lambda item: item.key)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each file."""
        return read_files(items, self.audio.find)

    def _names(self) -> Iterator[str]:
        endings = tuple(f".{suffix}" for suffix in self.config.suffixes)
        for folder, _, files in os.walk(self.audio.path):
            for file in files:
                if file.lower().endswith(endings) and not file.startswith("."):
                    yield os.path.relpath(os.path.join(folder, file), self.audio.path)

    def _item(self, name: str, groups: dict[str, Any], row: dict[str, Any]) -> Item:
        config = self.config
        fields: dict[str, Scalar] = scalars({**row, **groups})
        stem = (self.audio.path / name).with_suffix("")
        if "json" in config.sidecars and (beside := stem.with_suffix(".json")).is_file():
            fields |= scalars(parse_object(_sidecar(beside), str(beside)))
        if "txt" in config.sidecars and (beside := stem.with_suffix(".txt")).is_file():
            fields["text"] = _sidecar(beside).strip()
        taken = {}  # field -> value, of the fields that are key or split; "" -> "" where none is named
        for key in (config.key_field, config.split_field):
            if key and key not in fields:
                raise InputError(unknown_name("field", key, fields, name))
            taken[key] = str(fields.get(key, ""))
        metadata = {field: value for field, value in fields.items() if field not in taken}
        return Item(clean_name(taken[config.key_field] or name), taken[config.split_field] or config.split, metadata, {"audio": name})


def _sidecar(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_SIDECAR:
            raise InputError(f"`{path}` has more than {MAX_SIDECAR} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read `{path}`: {error}") from None


def _table(path: Path) -> dict[str, dict[str, Any]]:
    rows = read_jsonl(path) if path.suffix == ".jsonl" else read_table(path, TableFormat())
    out = {}
    for number, row in rows:
        if not isinstance(name := row.pop("file_name", None), str):
            raise InputError(f"a row needs `file_name`; it has {', '.join(sorted(row)) or 'nothing'} ({path}, line {number})")
        out[name] = row
    return out
