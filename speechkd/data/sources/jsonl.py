"""A JSON-lines file beside a folder of audio: the layout that needs no library to write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.types import Scalar
from speechkd.data.audio import decode_file
from speechkd.data.sources.base import Item, RawClip, Rejected


class JsonlConfig(Config):
    """One object per line. `audio_field` holds a path below `root` (absent or empty: a text-only row); other scalar fields are metadata."""

    kind: Literal["jsonl"]
    file: Path
    """relative to the card"""
    root: Path
    """folder of the audio, relative to the card"""
    audio_field: str = "audio"
    key_field: str = ""
    """empty: the line number is the key"""
    split_field: str = ""
    split: str = "train"
    """split of rows that name none"""


class JsonlSource:
    """FLAC and PCM WAV files named by a JSON-lines file."""

    Config = JsonlConfig

    def __init__(self, config: JsonlConfig, card_dir: Path) -> None:
        self.config = config
        self.file, self.root = card_dir / config.file, card_dir / config.root
        if not self.root.is_dir():
            raise InputError(f"no folder `{self.root}`: put the corpus's audio there, or say where it is (card: source.root)")

    def items(self) -> list[Item]:
        """All rows, sorted by key. Raises InputError naming file and line."""
        try:
            with self.file.open(encoding="utf-8") as stream:
                items = [self._item(line, number) for number, line in enumerate(stream, 1) if line.strip()]
        except FileNotFoundError:
            raise InputError(f"no such file `{self.file}`: it lists the corpus, one JSON object a line (card: source.file)") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read `{self.file}`: {error}") from None
        return sorted(items, key=lambda item: item.key)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each item's file; a path that leaves the root is rejected, never followed."""
        root = self.root.resolve()
        for item in items:
            name = item.payload["audio"]
            yield None if not name else _read(root, name)

    def _item(self, line: str, number: int) -> Item:
        where = f"{self.file}, line {number}"
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not valid JSON: {error} ({where})") from None
        if not isinstance(row, dict):
            raise InputError(f"must be one JSON object, is {type(row).__name__} ({where})")
        config = self.config
        audio = row.pop(config.audio_field, None) or ""
        if not isinstance(audio, str):
            raise InputError(f"`{config.audio_field}` must be a path, is {type(audio).__name__} ({where})")
        key = self._text(row, config.key_field, where) if config.key_field else f"{number:09d}"
        split = self._text(row, config.split_field, where) if config.split_field in row else config.split
        metadata: dict[str, Scalar] = {name: value for name, value in row.items() if isinstance(value, (str, int, float, bool))}
        return Item(key=key, split=split, metadata=metadata, payload={"audio": audio, "line": number})

    def _text(self, row: dict[str, Any], field: str, where: str) -> str:
        if not isinstance(row.get(field), (str, int)):
            raise InputError(f"field `{field}` must be text; the row has {', '.join(sorted(row)) or 'nothing'} ({where})")
        return str(row.pop(field))


def _read(root: Path, name: str) -> RawClip | Rejected:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return Rejected("path must stay below the root folder")
    try:
        target = (root / path).resolve()
        if not target.is_relative_to(root):
            return Rejected("is a link to outside the root folder")
        if not target.is_file():
            return Rejected("no such file")
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name that is no Unicode
        return Rejected(f"cannot be found: {error}")
    return decode_file(target)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
