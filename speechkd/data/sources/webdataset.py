"""Webdataset tars: members with the same name up to the first dot are one sample. https://github.com/webdataset/webdataset"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from speechkd.core.errors import InputError, nearest, unknown_name
from speechkd.core.text import decode_text
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import PAIRED, Item, Unmatched, unmatched, without_audio
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
        self._suffixes: set[str] = set()
        self.tars = stated.files_by_split(config, config.tars, data_root, "source.tars")

    def items(self) -> list[Item]:
        """All samples, sorted by key. Raises InputError for a damaged tar or metadata that is not JSON."""
        self._unread = []
        items = self._qualified([(tar, item) for split, tar in self.tars for item in self._tar(split, tar)])
        self._check_suffixes()
        of, readable = len(items) + len(self._unread), {*self.config.audio, self.config.json_suffix, *self.config.text}
        silent = [item.key for item in items if not item.payload]
        mute = [item.key for item in items if item.payload and not item.metadata]
        self.unmatched = without_audio("samples have text but no audio", silent, of)
        self.unmatched += unmatched("samples have audio but no text", mute, of, limit=PAIRED if len(mute) < len(items) else 1.0)
        self.unmatched += unmatched(f"samples are left out: no member is {', '.join(sorted(readable))}", self._unread, of)
        return items

    def _check_suffixes(self) -> None:
        """Refuse a suffix of the card that no member has; of those of audio, only one very like a suffix that would not be read."""
        config, read = self.config, {*self.config.audio, self.config.json_suffix, *self.config.text}
        given = config.model_dump(include={"json_suffix", "text", "audio"}, exclude_defaults=True) if self._suffixes else {}
        wanted = [("json_suffix", config.json_suffix)] if "json_suffix" in given else []
        wanted += [("text", suffix) for suffix in config.text] if "text" in given else []
        wanted += [("audio", suffix) for suffix in config.audio if nearest(suffix, self._suffixes - read)] if "audio" in given else []
        for key, suffix in wanted:
            if suffix not in self._suffixes:
                raise InputError(unknown_name("suffix", suffix, self._suffixes, f"card: source.{key}; no member has it"))

    def _qualified(self, found: list[tuple[Path, Item]]) -> list[Item]:
        """The items sorted by key. If the keys of several tars restart, each has its tar's name before it."""
        tars_of: dict[str, list[tuple[Path, Item]]] = {}
        for tar, item in found:
            tars_of.setdefault(item.name, []).append((tar, item))
        shared = [entries for entries in tars_of.values() if len(entries) > 1]
        for entries in shared:
            mute, silent = (next((tar for tar, i in entries if is_part(i)), None) for is_part in (_audio_alone, _text_alone))
            if mute and silent:
                raise InputError(f"`{entries[0][1].name}` has its audio in `{mute}` and its text in `{silent}`: one tar must hold both")
        if shared:
            stems = {tar: tar.stem for _, tar in self.tars}
            if len(set(stems.values())) < len(stems):
                stems = {tar: tar.relative_to(self.root).with_suffix("").as_posix() for tar in stems}
            found = [(tar, replace(i, key=clean_name(f"{stems[tar]}-{i.name}"), name=f"{stems[tar]}/{i.name}")) for tar, i in found]
        return sorted((item for _, item in found), key=lambda item: item.key)

    def _tar(self, split: str, tar: Path) -> Iterator[Item]:
        samples: dict[str, dict[str, TarMember]] = {}  # of the whole tar: one sorted by suffix has a sample's members far apart
        for member in list_tar(tar):
            path = PurePosixPath(member.name)
            stem, _, suffix = path.name.partition(".")
            key = str(path.with_name(stem)) if stem else ""
            if not key or not suffix:
                continue
            sample = samples.setdefault(key, {})
            if suffix.lower() in sample:
                raise InputError(f"`{member.name}` is in `{tar}` twice: give one of the two another name")
            sample[suffix.lower()] = member
            self._suffixes.add(suffix.lower())
        for key, sample in samples.items():
            yield from self._item(split, tar, key, sample)

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
            yield Item(clean_name(key.removeprefix("./")), split, metadata, payload, key.removeprefix("./"))

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each sample's audio member."""
        return read_members(items, self.root, [tar for _, tar in self.tars])


def _audio_alone(item: Item) -> bool:
    return bool(item.payload) and not item.metadata


def _text_alone(item: Item) -> bool:
    return not item.payload


def _text(tar: Path, member: TarMember, encoding: str) -> str:
    if member.problem or member.size > MAX_TEXT:
        raise InputError(f"`{member.name}` {member.problem or f'has {member.size} bytes, allowed {MAX_TEXT}'} ({tar})")
    data = read_range(tar, member.offset, member.size)
    if isinstance(data, Rejected):
        raise InputError(f"`{member.name}` {data.reason} ({tar})")
    return decode_text(data, f"{tar}, {member.name}", encoding)
