"""JSON-lines files that list audio files or texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import Item, Unmatched
from speechkd.data.sources.paths import TextFiles
from speechkd.data.sources.rows import RowConfig, RowList, counted_key, open_audio, read_files, read_jsonl


class JsonlConfig(RowConfig, TextFiles):
    """One object per line. Scalar fields other than key, split and audio are metadata. `audio_field: ""`: a text-only corpus."""

    kind: Literal["jsonl"]
    file: paths.PathBySplit
    """JSON-lines file, or split -> file"""


class JsonlSource:
    """Reads audio files, or texts, listed in JSON-lines files."""

    Config = JsonlConfig

    def __init__(self, config: JsonlConfig, data_root: Path) -> None:
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
            for number, row in read_jsonl(path, self.config.encoding):
                rows.add(row, number, split, counted_key(number, split, many_files), f"{path}, line {number}")
                self.field_names.update(name for name, value in row.items() if value in (None, ""))  # as an empty cell of a table
        items, self.unmatched = rows.checked(self.files[0][1])
        self.field_names -= self.config.used
        return items

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each item's file; a path that leaves the root is rejected, never followed."""
        return read_files(items, self.audio.find if self.audio else None)
