"""A folder of audio files, with metadata in the path, in a sidecar file per clip, or in one table."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator

from speechkd.core.errors import InputError, nearest, unknown_name
from speechkd.core.text import composed, paired_forms, read_text
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import Item, Unmatched, unmatched
from speechkd.data.sources.csv_table import TableFormat, read_table, valid_regex
from speechkd.data.sources.paths import AUDIO, AudioFolder, AudioPaths, TextFiles
from speechkd.data.sources.rows import parse_object, read_files, read_jsonl, scalars
from speechkd.data.storage.names import clean_name

MAX_SIDECAR = 1 << 20


class FolderConfig(AudioPaths, TextFiles):
    """Every audio file below `root` is a sample; with `pattern`, only paths that it matches."""

    kind: Literal["folder"]
    suffixes: list[str] = Field(default=[*AUDIO], min_length=1)
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
        self.unmatched: list[Unmatched] = []
        self.config = config
        self.audio = AudioFolder(data_root, config)
        self._spelled: dict[str, dict[str, str]] = {}  # suffix -> a clip's name -> its sidecar's, where they differ in Unicode form
        self.table = paths.file(data_root, str(Path(config.root, config.metadata)), "source.metadata") if config.metadata else None

    def items(self) -> list[Item]:
        """All clips, sorted by key. Raises InputError if a table or a sidecar cannot be read."""
        names = sorted(self._names())
        self._check_suffixes(names)
        present = set(names)
        rows: dict[str, dict[str, Any]] = {}
        if self.table:
            spelled = {composed(name): name for name in names}
            rows = {spelled.get(composed(name), name): row for name, row in _table(self.table, self.config.encoding).items()}
        pattern = re.compile(self.config.pattern)
        named = {*pattern.groupindex, *(field for row in rows.values() for field in row)}
        self.field_names = named - {self.config.key_field, self.config.split_field}  # a group that never matches is no misspelt field
        self.unmatched = self._lists(names, rows)
        items = [self._absent(name, row) for name, row in rows.items() if name not in present]
        for name in names:
            match = pattern.search(name)
            if match and (self.table is None or name in rows):
                items.append(self._item(name, match.groupdict(), rows.get(name, {})))
        return sorted(items, key=lambda item: item.key)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each file."""
        return read_files(items, self.audio.find)

    def _check_suffixes(self, names: list[str]) -> None:
        """Refuse a suffix of the card that no file has where other files are of a known one like it: they would be left out."""
        if "suffixes" not in self.config.model_fields_set:
            return
        used = {name.rpartition(".")[2].lower() for name in names}
        others = {name.rpartition(".")[2].lower() for name in self._files(tuple(f".{suffix}" for suffix in AUDIO))} - used
        for suffix in self.config.suffixes:
            if suffix.lower() not in used and nearest(suffix.lower(), others):
                raise InputError(unknown_name("suffix", suffix, used | others, f"{self.audio.path}; card: source.suffixes; no file has it"))

    def _names(self) -> Iterator[str]:
        return self._files(tuple(f".{suffix}" for suffix in self.config.suffixes))

    def _files(self, endings: tuple[str, ...]) -> Iterator[str]:
        for folder, _, files in os.walk(self.audio.path):
            for file in files:
                if file.lower().endswith(endings) and not file.startswith("."):
                    yield os.path.relpath(os.path.join(folder, file), self.audio.path)

    def _absent(self, name: str, row: dict[str, Any]) -> Item:
        """A listed clip that is not there: it is rejected when it is read, like any listed file."""
        groups = (re.search(self.config.pattern, name) or re.match("", "")).groupdict()  # type: ignore[union-attr]
        return self._item(name, groups, row)

    def _lists(self, names: list[str], rows: dict[str, dict[str, Any]]) -> list[Unmatched]:
        """Clips and rows of the table, clips and sidecars that have no partner."""
        out: list[Unmatched] = []
        present = set(names)
        if self.table:
            absent = [name for name in rows if name not in present]
            out += unmatched(f"rows of `{self.table}` name no clip below `{self.audio.path}`", absent, len(rows))
            out += unmatched(
                f"clips are not in `{self.table}` and are left out", [n for n in names if n not in rows], len(names), limit=1.0
            )
        clips = {_stem(name) for name in names}
        for suffix in self.config.sidecars:
            beside = {_stem(name) for name in self._files((f".{suffix}",))}
            beside -= {_stem(self.config.metadata)} if self.table else set()
            self._spelled[suffix] = paired_forms(clips - beside, beside - clips)
            beside = beside - {*self._spelled[suffix].values()} | {*self._spelled[suffix]}
            out += unmatched(f"`.{suffix}` files belong to no clip", [f"{n}.{suffix}" for n in sorted(beside - clips)], len(beside))
            out += unmatched(f"clips have no `.{suffix}` file", [n for n in names if _stem(n) not in beside], len(names))
        return out

    def _beside(self, name: str, suffix: str) -> Path | None:
        """The clip's sidecar, if there is one. A table may name anything, so nothing outside the folder is opened."""
        stem = self._spelled.get(suffix, {}).get(_stem(name), _stem(name))
        path = self.audio.path / f"{stem}.{suffix}"  # not with_suffix(): the rest of `talk.1` is part of its name
        inside = path.is_relative_to(self.audio.path) and ".." not in PurePosixPath(name).parts
        return path if inside and paths.is_there(path, Path.is_file) else None

    def _item(self, name: str, groups: dict[str, Any], row: dict[str, Any]) -> Item:
        config = self.config
        fields: dict[str, Scalar] = scalars({**row, **groups})
        if "json" in config.sidecars and (beside := self._beside(name, "json")):
            fields |= scalars(parse_object(read_text(beside, config.encoding, MAX_SIDECAR), str(beside)))
        if "txt" in config.sidecars and (beside := self._beside(name, "txt")):
            fields["text"] = read_text(beside, config.encoding, MAX_SIDECAR).strip()
        taken = {}  # field -> value, of the fields that are key or split; "" -> "" where none is named
        for key in (config.key_field, config.split_field):
            if key and key not in fields:
                raise InputError(unknown_name("field", key, fields, name))
            taken[key] = str(fields.get(key, ""))
        metadata = {field: value for field, value in fields.items() if field not in taken}
        called = taken[config.key_field] or name
        return Item(clean_name(called), taken[config.split_field] or self._split(name), metadata, {"audio": name}, called)

    def _split(self, name: str) -> str:
        """The card's split, or what the clip's folders state where the card names none."""
        if {"split", "split_field"} & self.config.model_fields_set:
            return self.config.split
        path = PurePosixPath(self.config.root, os.path.relpath(self.audio.path / name, self.audio.path)).parent  # a table's may be absolute
        return stated.checked(stated.stated_split(path, is_folder=True), name, "source.split_field") or self.config.split


def _stem(name: str) -> str:
    """The path without its last suffix."""
    return os.path.splitext(name)[0]


def _table(path: Path, encoding: str) -> dict[str, dict[str, Any]]:
    rows = read_jsonl(path, encoding) if path.suffix == ".jsonl" else read_table(path, TableFormat(encoding=encoding))
    out: dict[str, dict[str, Any]] = {}
    for number, row in rows:
        if not isinstance(name := row.pop("file_name", None), str):
            raise InputError(f"a row needs `file_name`; it has {', '.join(sorted(row)) or 'nothing'} ({path}, line {number})")
        if name in out:
            raise InputError(f"`{name}` is given twice: remove a row ({path}, line {number})")
        out[name] = row
    return out
