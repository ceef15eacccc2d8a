"""Chat datasets with audio, in the formats of ms-swift and LLaMA-Factory.

ms-swift: `{"messages": [{"role": "user", "content": "<audio>Who?"}, {"role": "assistant", "content": "..."}], "audios": ["a.wav"]}`;
LLaMA-Factory (sharegpt): `conversations` with `from` (human, gpt) and `value`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from speechkd.core.errors import InputError, nearest, unknown_name
from speechkd.core.text import read_text
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import Item, Unmatched, without_audio
from speechkd.data.sources.paths import AudioFolder, AudioPaths, TextFiles
from speechkd.data.sources.rows import audio_path, counted_key, each_once, read_files, read_jsonl, scalars
from speechkd.data.sources.spans import shared_recordings
from speechkd.data.storage.names import clean_name

ROLES = {
    "user": "question", "human": "question", "assistant": "answer", "gpt": "answer", "system": "system",
}  # fmt: skip
MAX_JSON = 2 << 30
_TAG = re.compile(r"<[\w|/-]{1,40}>")


class MessagesConfig(AudioPaths, TextFiles):
    """The first exchange gives `question` and `answer`, the n-th `question_n` and `answer_n`; `system` and other scalar fields are kept."""

    kind: Literal["messages"]
    file: paths.PathBySplit
    """.jsonl, or .json with one list; or split -> file"""
    key_field: str = ""
    """empty: the row number"""
    tag: str = "<audio>"
    """removed from questions: the prompt template places the audio"""
    split: str = "train"


class MessagesSource:
    """Reads conversations about one clip each, or about none."""

    Config = MessagesConfig

    def __init__(self, config: MessagesConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.config = config
        self._tags: set[str] = set()
        self._tagged = False
        self.audio = AudioFolder(data_root, config)
        self.files = [
            (split, paths.file(data_root, name, "source.file")) for split, name in stated.by_split(config, config.file, "source.file")
        ]

    def items(self) -> list[Item]:
        """All rows, sorted by key. Raises InputError naming file and row."""
        many_files = len(self.files) > 1
        items = [
            self._item(row, split, counted_key(number, split, many_files), f"{path}, row {number}")
            for split, path in self.files
            for number, row in _rows(path, self.config.encoding)
        ]
        self._check_tag()
        self.unmatched = without_audio("conversations have no audio", [i.key for i in items if i.payload.get("audio") == ""], len(items))
        self.unmatched += shared_recordings(items)
        self.unmatched += self.audio.unlisted(item.payload.get("audio", "") for item in items)
        return sorted(items, key=lambda item: item.key)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each row's clip."""
        for item in items:
            yield Rejected(item.payload["problem"]) if "problem" in item.payload else next(read_files([item], self.audio.find))

    def _item(self, row: dict[str, Any], split: str, counted: str, where: str) -> Item:
        messages = row.pop("messages", None) or row.pop("conversations", None)
        if not isinstance(messages, list):
            raise InputError(f"a row has `messages` or `conversations`; this one has {', '.join(sorted(row)) or 'nothing'} ({where})")
        audios = row.pop("audios", None) or row.pop("audio", None) or []
        audios = audios if isinstance(audios, list) else [audios]
        if self.config.key_field and self.config.key_field not in row:
            raise InputError(unknown_name("field", self.config.key_field, row, f"{where}; card: source.key_field"))
        called = str(row.pop(self.config.key_field)) if self.config.key_field else counted
        payload: dict[str, Any] = {"audio": audio_path(audios[0]) if audios else ""}
        if len(audios) > 1:
            payload = {"problem": f"has {len(audios)} audios; a sample has one"}
        elif payload["audio"] is None:
            payload = {"problem": f"its audio is {json.dumps(audios[0])[:60]}: must be a path, or an object with one (`path`)"}
        return Item(clean_name(called), split, scalars(row) | self._turns(messages, where), payload, called)

    def _check_tag(self) -> None:
        """Refuse a tag of the card that no message has while some have one like it: it would stay in the questions."""
        tag = self.config.tag
        if not self._tagged and "tag" in self.config.model_fields_set and nearest(tag, self._tags):
            raise InputError(unknown_name("tag", tag, self._tags, "card: source.tag; no message has it"))

    def _turns(self, messages: list[Any], where: str) -> dict[str, Scalar]:
        out: dict[str, Scalar] = {}
        counts: dict[str, int] = {}
        for message in messages:
            role, content = (
                (message.get("role") or message.get("from"), message.get("content", message.get("value")))
                if isinstance(message, dict)
                else (None, None)
            )
            name = ROLES.get(str(role))
            if name is None or not isinstance(content, str):
                raise InputError(f"a message has a role ({', '.join(ROLES)}) and a text; given `{str(message)[:60]}` ({where})")
            counts[name] = counts.get(name, 0) + 1
            self._tags.update(_TAG.findall(content))
            self._tagged = self._tagged or self.config.tag in content
            out[name if counts[name] == 1 else f"{name}_{counts[name]}"] = content.replace(self.config.tag, "").strip()
        return {name: value for name, value in out.items() if value}


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".jsonl":
        yield from read_jsonl(path, encoding)
        return
    try:
        if path.stat().st_size > MAX_JSON:
            raise InputError(f"`{path}` has more than {MAX_JSON} bytes: write one object a line (.jsonl)")
        text = read_text(path, encoding)
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error}") from None
    try:
        rows = json.loads(text, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read `{path}`: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"must be a list of objects ({path})")
    yield from enumerate(rows, 1)
