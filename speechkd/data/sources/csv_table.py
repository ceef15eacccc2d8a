"""Reads CSV, TSV and other text tables that list audio files or texts."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.text import MAX_LINE, text_lines
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import Item, Unmatched
from speechkd.data.sources.paths import TextFiles
from speechkd.data.sources.rows import RowConfig, RowList, counted_key, open_audio, read_files
from speechkd.data.sources.spans import Numbers


class TableFormat(TextFiles, Numbers):
    """Syntax of a text table."""

    delimiter: str = Field(default="", max_length=1)
    """empty: tab for .tsv and .txt files, comma otherwise; one space: any white space, and the last column takes the rest"""
    quotes: bool = True
    """false: a quotation mark is an ordinary character, as in Common Voice"""
    multiline: bool = False
    """true: a quoted cell may hold line breaks; otherwise a quotation that is open at a line's end is refused"""
    columns: list[str] = []
    """column names, if the first line is not a header"""
    skip_lines: int = Field(default=0, ge=0, le=1_000_000_000)
    """lines to skip before the table"""
    rest: bool = False
    """true: extra cells of a line are joined to the last column"""
    comment: str = ""
    """lines that begin with this are skipped"""
    pattern: str = ""
    """regular expression whose named groups are the columns; other lines are skipped; of the keys above only skip_lines applies"""
    numbers: list[str] = []
    """columns to parse as numbers; others stay text"""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return valid_regex(pattern)

    @field_validator("columns")
    @classmethod
    def _each_once(cls, columns: list[str]) -> list[str]:
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise ValueError(f"column `{twice}` is named twice: a row has one value for each name")
        return columns


class CsvConfig(RowConfig, TableFormat):
    """One row per sample. Columns other than key, split and audio are metadata; empty cells are omitted."""

    kind: Literal["csv"]
    file: paths.PathBySplit
    """the table, or split -> table"""


class CsvSource:
    """Reads audio files, or texts, listed in tables."""

    Config = CsvConfig

    def __init__(self, config: CsvConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.config = config
        self.audio = open_audio(data_root, config)
        self.files = [
            (split, paths.file(data_root, name, "source.file")) for split, name in stated.by_split(config, config.file, "source.file")
        ]

    def items(self) -> list[Item]:
        """All rows, sorted by key. Raises InputError naming file and line."""
        many_files = len(self.files) > 1
        rows = RowList(self.config, self.audio)
        for split, path in self.files:
            for count, (number, row) in enumerate(read_table(path, self.config), 1):
                rows.add(row, number, split, counted_key(count, split, many_files), f"{path}, line {number}")
        self.field_names = set(rows.names) - self.config.used
        items, self.unmatched = rows.checked(self.files[0][1])
        return items

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each item's file; a path that leaves `root` is rejected, never followed."""
        return read_files(items, self.audio.find if self.audio else None)


def read_table(path: Path, style: TableFormat) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, column -> value) of every row. Raises InputError naming file and line."""
    lines = islice(text_lines(path, style.encoding), style.skip_lines, None)
    if named := style.columns if not style.pattern else list(re.compile(style.pattern).groupindex):
        _check_numbers(style, named, path)
    for number, cells, columns in _pattern_rows(lines, style.pattern) if style.pattern else _rows(lines, path, style):
        if len(cells) != len(columns):
            raise InputError(
                f"the row has {len(cells)} cells, the table has {len(columns)} columns: mend the line, or set "
                f"`delimiter`, `quotes` ({path}, line {number})"
            )
        row = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
        yield number, {
            name: _number(row, name, style.decimal, f"{path}, line {number}") if name in style.numbers else row[name] for name in row
        }


def _check_numbers(style: TableFormat, columns: Sequence[str], path: Path) -> None:
    for name in style.numbers:
        if name not in columns:
            raise InputError(unknown_name("column", name, columns, f"{path}: numbers"))


def _pattern_rows(lines: Iterable[tuple[int, str]], pattern: str) -> Iterator[tuple[int, list[str], list[str]]]:
    rule = re.compile(pattern)
    for number, line in lines:
        if match := rule.search(line):
            yield number, [text or "" for text in match.groupdict().values()], list(rule.groupindex)


def valid_regex(pattern: str) -> str:
    """A card's regular expression, unchanged. Raises ValueError if it does not compile."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`{pattern}` is not a regular expression: {error}") from None
    return pattern


class _Lines:
    """The lines that the csv reader asks for. It asks for another one within a row only if a quotation is open at the line's end."""

    def __init__(self, lines: Iterable[tuple[int, str]], path: Path, style: TableFormat) -> None:
        self.begun = 0
        """line at which the row being read began; 0: none"""
        self._lines, self._path, self._style = iter(lines), path, style

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.begun and not self._style.multiline:
            raise self._open("line's")
        for number, line in self._lines:
            if not self.begun and self._style.comment and line.startswith(self._style.comment):
                continue
            self.begun = self.begun or number
            return line + "\n"
        if self.begun:
            raise self._open("file's")
        raise StopIteration

    def _open(self, end: str) -> InputError:
        return InputError(f"a quotation is open at the {end} end: {_WAYS} ({self._path}, line {self.begun})")


_WAYS = "set `quotes: false` if quotation marks are ordinary characters, `multiline: true` if cells may hold line breaks"


def _cells(lines: Iterable[tuple[int, str]], path: Path, style: TableFormat, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells). A row is one line unless the style allows more: one stray mark would make other rows part of its text."""
    feed = _Lines(lines, path, style)
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(feed, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if style.quotes else csv.QUOTE_NONE, strict=True)
    while True:
        feed.begun = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"cannot be read as cells, {error}: {_WAYS} ({path}, line {feed.begun})") from None
        yield feed.begun, cells


def _rows(lines: Iterable[tuple[int, str]], path: Path, style: TableFormat) -> Iterator[tuple[int, list[str], list[str]]]:
    columns = list(style.columns)
    spaces = style.delimiter == " "
    delimiter = style.delimiter or ("\t" if path.suffix in (".tsv", ".txt") else ",")
    if spaces:
        kept = ((number, line) for number, line in lines if not (style.comment and line.startswith(style.comment)))
        rows: Iterator[tuple[int, list[str]]] = ((number, line.split(None, len(columns) - 1 if columns else -1)) for number, line in kept)
    else:
        rows = _cells(lines, path, style, delimiter)
    for number, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if not columns:
            columns = [cell.strip() for cell in cells]
            if duplicate := next((name for name in columns if columns.count(name) > 1), None):
                raise InputError(f"column `{duplicate}` occurs twice: rename one, or name all in `columns` ({path})")
            _check_numbers(style, columns, path)
        else:
            if style.rest and len(cells) > len(columns):
                cells = [*cells[: len(columns) - 1], delimiter.join(cells[len(columns) - 1 :])]
            yield number, cells + [""] * (len(columns) - len(cells) if spaces else 0), columns


def _number(row: dict[str, str], name: str, decimal: str, where: str) -> int | float | str:
    text = row[name] if decimal == "." else row[name].replace(",", ".", 1)
    try:
        # "n" for nan and inf
        return "" if not text else float(text) if any(char in text for char in ".eEnN") else int(text)
    except ValueError:
        raise InputError(
            f"`{name}` must be a number with the decimal mark `{decimal}`, is `{row[name][:40]}`: mend it, set `decimal`, or take the "
            f"column out of `numbers` ({where})"
        ) from None
