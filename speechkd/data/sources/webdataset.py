"""Webdataset tars: members with the same name up to the first dot are one sample. https://github.com/webdataset/webdataset"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from speechkd.core.errors import InputError
from speechkd.core.text import decode_text
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths
from speechkd.data.sources.base import PAIRED, Item, Unmatched, unmatched
from speechkd.data.sources.rows import parse_object, scalars
from speechkd.data.sources.tarfiles import TarMember, list_tar, member_payload, read_members, read_range
from speechkd.data.storage.names import clean_name

MAX_TEXT = 1 << 20
"""Most bytes of a metadata member"""


class WebdatasetConfig(paths.TextFiles):
    """Members are selected by suffix (all that follows the first dot); others, such as pickles, are never opened."""

    kind: Literal["webdataset"]
    tars: paths.PathBySplit
    """`train/{000000..000511}.tar` or `train/*.tar`, or split -> tars"""
    audio: list[str] = ["flac", "wav", "mp3", "ogg", "opus"]
    json_suffix: str = "json"
    """suffix of a JSON object of metadata"""
    text: dict[str, str] = {"txt": "text"}
    """suffix of a text member -> field"""
    split: str = "train"


class WebdatasetSource:
    """Reads the samples of webdataset tars."""

    Config = WebdatasetConfig

    def __init__(self, config: WebdatasetConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.config, self.root = config, data_root
        self._unread: list[str] = []
        self.tars = [
            (s, path) for s, name in paths.by_split(config.tars, config.split) for path in paths.files(data_root, name, "source.tars")
        ]

    def items(self) -> list[Item]:
        """All samples, sorted by key. Raises InputError for a damaged tar or metadata that is not JSON."""
        self._unread = []
        items = sorted((item for split, tar in self.tars for item in self._tar(split, tar)), key=lambda item: item.key)
        of, readable = len(items) + len(self._unread), {*self.config.audio, self.config.json_suffix, *self.config.text}
        silent = [item.key for item in items if not item.payload]
        mute = [item.key for item in items if item.payload and not item.metadata]
        self.unmatched = unmatched("samples have text but no audio", silent, of, limit=1.0)
        self.unmatched += unmatched("samples have audio but no text", mute, of, limit=PAIRED if len(mute) < len(items) else 1.0)
        self.unmatched += unmatched(f"samples are left out: no member is {', '.join(sorted(readable))}", self._unread, of)
        return items

    def _tar(self, split: str, tar: Path) -> Iterator[Item]:
        sample: dict[str, TarMember] = {}
        before = ""
        for member in list_tar(tar):
            path = PurePosixPath(member.name)
            stem, _, suffix = path.name.partition(".")
            key = str(path.with_name(stem)) if stem else ""
            if not key or not suffix:
                continue
            if key != before and sample:
                yield from self._item(split, tar, before, sample)
                sample = {}
            sample[suffix.lower()], before = member, key
        if sample:
            yield from self._item(split, tar, before, sample)

    def _item(self, split: str, tar: Path, key: str, sample: dict[str, TarMember]) -> Iterator[Item]:
        config = self.config
        metadata: dict[str, Scalar] = {}
        if config.json_suffix in sample:
            where = f"{tar}, {sample[config.json_suffix].name}"
            metadata |= scalars(parse_object(_text(tar, sample[config.json_suffix], config.encoding), where))
        for suffix, field in config.text.items():
            if suffix in sample:
                metadata[field] = _text(tar, sample[suffix], config.encoding).strip()
        audio = next((sample[suffix] for suffix in config.audio if suffix in sample), None)
        payload: dict[str, Any] = member_payload(tar, self.root, audio) if audio else {}
        if not audio and not metadata:
            self._unread.append(key)
        else:
            yield Item(clean_name(key.removeprefix("./")), split, metadata, payload)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each sample's audio member."""
        return read_members(items, self.root, [tar for _, tar in self.tars])


def _text(tar: Path, member: TarMember, encoding: str) -> str:
    if member.problem or member.size > MAX_TEXT:
        raise InputError(f"`{member.name}` {member.problem or f'has {member.size} bytes, allowed {MAX_TEXT}'} ({tar})")
    data = read_range(tar, member.offset, member.size)
    if isinstance(data, Rejected):
        raise InputError(f"`{member.name}` {data.reason} ({tar})")
    return decode_text(data, f"{tar}, {member.name}", encoding)
