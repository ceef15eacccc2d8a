"""Shared by all row layouts: one row is one sample, with fields for key, split and audio; other scalar fields are metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.text import text_lines
from speechkd.core.types import Scalar
from speechkd.data.audio.clips import decode_file
from speechkd.data.audio.raw import RawClip, Rejected, Span
from speechkd.data.sources.base import Item, Unmatched, without_audio
from speechkd.data.sources.paths import AudioFolder, AudioPaths
from speechkd.data.sources.spans import SpanFields, channel_numbers, check_channels, shared_recordings, span_of_row
from speechkd.data.storage.names import clean_name


class RowConfig(AudioPaths, SpanFields):
    """Keys of all row layouts. A value with braces is a template of fields and `split`: `audio_field: "{split}/utt{number}.wav"`."""

    audio_field: str = "audio"
    """field with the audio's path below `root`; empty: a corpus of texts. The card's `text_only` says what single rows without audio are"""
    key_field: str = ""
    """empty: the row number is the key"""
    clean_keys: bool = False
    """replace characters that are invalid in a key with `_`, and drop an audio suffix; otherwise such keys are refused"""
    split_field: str = ""
    split: str = "train"
    """split of rows without one"""
    first_of: list[str] = []
    """lists whose first entry is kept, e.g. `answers.text`; other lists are dropped"""

    @property
    def used(self) -> set[str]:
        """Fields that are not metadata."""
        return {self.audio_field, self.key_field, self.split_field, *self.span_fields}


def read_jsonl(path: Path, encoding: str = "", stream: Any = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not empty. `stream`: the open file, if it is compressed. Raises InputError."""
    for number, line in text_lines(path, encoding, stream):
        if line.strip():
            yield number, parse_object(line, f"{path}, line {number}")


def parse_object(text: str, where: str) -> dict[str, Any]:
    """One JSON object. Raises InputError naming `where`."""
    try:
        row = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error} ({where})") from None
    if not isinstance(row, dict):
        raise InputError(f"must be one JSON object, given {type(row).__name__} ({where})")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Of a key given twice, the first value would be lost."""
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key `{next(name for name in names if names.count(name) > 1)[:80]}` is given twice: remove one")
    return out


def is_number(value: Any) -> bool:
    """Whether a value of a list is a finite number that a float holds (JSON may say true, 1e999 or 400 digits)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15


def audio_path(value: Any) -> str | None:
    """The path in a list's audio cell: text, or an object with `path` and no bytes, as `datasets` writes it; None for anything else."""
    if isinstance(value, Mapping) and not value.get("bytes") and "array" not in value:
        value = value.get("path")
    return value if isinstance(value, str) else None


def scalars(row: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """The row's text, numbers and booleans. Objects are flattened (`custom: {snr: 3}` is `custom.snr`), lists and empty values dropped."""
    out: dict[str, Scalar] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            out |= scalars(value, f"{prefix}{name}.")
        elif isinstance(value, (str, int, float, bool)) and value != "" and not (isinstance(value, float) and not math.isfinite(value)):
            out[prefix + str(name)] = value
    return out


def field_names(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of a row's fields and of those inside its objects, with a value or without."""
    for name, value in row.items():
        yield prefix + str(name)
        if isinstance(value, Mapping):
            yield from field_names(value, f"{prefix}{name}.")


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """Replace `{field}` in a template by the row's value, without formats or attribute access. Raises InputError for unknown fields."""

    def value(match: re.Match[str]) -> str:
        if isinstance(row.get(match[1]), (str, int, float)):
            return str(row[match[1]])
        raise InputError(unknown_name("field", match[1], row, where))

    return re.sub(r"\{([^{}]*)\}", value, template)


def row_item(row: Mapping[str, Any], config: RowConfig, number: int, split: str, counted: str, where: str) -> Item:
    """Make an item from a row. `counted`: the key to use if the card has no `key_field`. Raises InputError naming `where`."""
    row = {"split": split, **row} if "{split}" in config.key_field + config.audio_field else row
    used = config.used
    key = _named(row, config.key_field, where) if config.key_field else counted
    if config.split_field and (config.split_field in row or "{" in config.split_field):
        split = _named(row, config.split_field, where)
    audio: Any = ""
    if "{" in config.audio_field:
        audio = fill(config.audio_field, row, where)
    elif config.audio_field:
        audio = audio_path(given) if (given := row.get(config.audio_field) or "") else ""
    if audio is None:
        raise InputError(f"`{config.audio_field}` must be a path, or an object with one (`path`), given {_kind(given)} ({where})")
    payload = {"audio": audio, "line": number} | (span_of_row(row, config) if config.span_fields and audio else {})
    metadata = scalars({name: value for name, value in row.items() if name not in used and not (name == "split" and value is split)})
    for name in config.first_of:
        if isinstance(value := _first(row, name.split(".")), (str, int, float)) and value != "":
            metadata[name] = value
    return Item(clean_name(key) if config.clean_keys else key, split, metadata, payload, key)


def _kind(value: Any) -> str:
    return f"an object with {', '.join(sorted(map(str, value)))[:80] or 'nothing'}" if isinstance(value, Mapping) else type(value).__name__


def _first(value: Any, path: list[str]) -> Any:
    """The value at a path, taking the first entry of every list on the way."""
    for name in path:
        value = value[0] if isinstance(value, list) and value else value
        value = value.get(name) if isinstance(value, Mapping) else None
    return value[0] if isinstance(value, list) and value else value


def _named(row: Mapping[str, Any], name: str, where: str) -> str:
    if "{" in name:
        return fill(name, row, where)
    if name not in row:
        raise InputError(unknown_name("field", name, row, where))
    if not isinstance(row[name], (str, int)):
        raise InputError(f"field `{name}` must be text; the row has {', '.join(sorted(row)) or 'nothing'} ({where})")
    return str(row[name])


def read_files(items: Sequence[Item], find: Callable[[str], Path | Rejected] | None) -> Iterator[RawClip | Rejected | None]:
    """Decode each item's `audio`, or the span given by its payload; None if it has no audio, rejected with the payload's `problem`."""
    for item in items:
        if "problem" in item.payload:
            yield Rejected(item.payload["problem"])
            continue
        name = item.payload["audio"]
        if not name:
            yield None
            continue
        assert find is not None, "a source that names audio has a folder for it"
        path = find(name)
        yield path if isinstance(path, Rejected) else decode_file(path, span_of(item.payload))


class RowList:
    """The rows of a list while it is read: their items, and what the rows have in all."""

    def __init__(self, config: RowConfig, audio: AudioFolder | None) -> None:
        self.items: list[Item] = []
        self.names: dict[str, None] = {}
        """fields that rows have, with a value or without"""
        self._config, self._audio, self._channels = config, audio, set[float]()

    def add(self, row: Mapping[str, Any], number: int, split: str, counted: str, where: str) -> None:
        """Add a row; the arguments are those of `row_item`."""
        self.items.append(row_item(row, self._config, number, split, counted, where))
        self.names.update(dict.fromkeys(field_names(row)))
        self._channels |= channel_numbers(row, self._config)

    def checked(self, where: object) -> tuple[list[Item], list[Unmatched]]:
        """The items sorted by key, and what else is to be said: rows without audio, files that serve several, audio that no row names.

        `where`: the list, for messages. Raises InputError for a field of the card that no row has.
        """
        items, config, strays = self.items, self._config, list[Unmatched]()
        check_row_fields(config, self.names, items, where)
        check_channels(self._channels, config)
        if self._audio is not None:
            silent = [item.key for item in items if item.payload.get("audio") == ""]
            strays += without_audio(f"rows name no audio (field `{config.audio_field}`)", silent, len(items))
            strays += shared_recordings(items, config)
            strays += self._audio.unlisted(item.payload.get("audio", "") for item in items)
        return sorted(items, key=lambda item: item.key), strays


def check_row_fields(config: RowConfig, names: Collection[str], items: Sequence[Item], where: object) -> None:
    """Refuse a key that names a field which no row has; `names`: all fields of all rows. Raises InputError."""
    keys = {"audio_field", "split_field", "start_field", "end_field", "duration_field", "channel_field"}
    for key, field in config.model_dump(include=keys & config.model_fields_set).items() if items else ():
        if field and "{" not in field and field not in names:
            raise InputError(unknown_name("field", field, names, f"{where}; card: source.{key}"))
    for name in config.first_of if items else ():
        if not any(name in item.metadata for item in items):
            raise InputError(unknown_name("list", name, names, f"{where}; card: source.first_of; no row has an entry there"))


def span_of(payload: Mapping[str, Any]) -> Span:
    """The span of the file that is this item."""
    return Span(payload.get("start", 0.0), payload.get("seconds"), payload.get("channel"), payload.get("unit") == "samples")


def counted_key(number: int, split: str, with_split: bool) -> str:
    """The key of a row without one: its number, prefixed by the split if `with_split`."""
    return f"{split}-{number:09d}" if with_split else f"{number:09d}"


def open_audio(data_root: Path, config: RowConfig) -> AudioFolder | None:
    """The audio folder; None for a text-only card (`audio_field` empty)."""
    return AudioFolder(data_root, config) if config.audio_field else None
