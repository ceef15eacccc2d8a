"""Reads NeMo manifests of audio files or of tarred datasets. https://docs.nvidia.com/nemo/speech/latest/asr/datasets.html"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.text import paired_forms
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import Item, Unmatched, unmatched
from speechkd.data.sources.paths import AudioFolder, AudioPaths, TextFiles
from speechkd.data.sources.rows import is_number, read_files, read_jsonl, scalars
from speechkd.data.sources.tarfiles import list_tar, member_payload, read_members
from speechkd.data.storage.names import clean_name

_SUB = re.compile(r"-sub\d+(?=\.\w+$|$)")
"""NeMo appends `-sub1`, `-sub2`, ... where several rows of a tarred manifest share one member; the member's name has none"""
_NUMBER = re.compile(r"(\d+)\.\w+$")
_AUDIO, _OFFSET, _SECONDS, _SHARD = "audio_filepath", "offset", "duration", "shard_id"


class NemoConfig(AudioPaths, TextFiles):
    """Rows with `audio_filepath`, `duration`, `offset` and other fields. With `tars`, the paths are members of those tars."""

    kind: Literal["nemo"]
    manifest: paths.PathBySplit
    """a manifest, or split -> manifest; `_OP_0..511_CL_` or `{0..511}` for sharded ones"""
    tars: str | dict[str, str] = ""
    """tars of a tarred manifest, e.g. `audio__OP_0..511_CL_.tar`, or split -> tars"""
    key_field: str = ""
    """empty: the audio's name, plus a number if several rows share a file"""
    split: str = "train"


class NemoSource:
    """Reads the rows of NeMo manifests."""

    Config = NemoConfig

    def __init__(self, config: NemoConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.config, self.root = config, data_root
        self.manifests = _by_split(stated.files_by_split(config, config.manifest, data_root, "source.manifest"))
        self.tars: dict[str, list[Path]] = {}
        if isinstance(config.tars, str) and len(self.manifests) == 1:
            split = next(iter(self.manifests))
            self.tars = {split: paths.files(data_root, config.tars, "source.tars")} if config.tars else {}
        elif config.tars:
            self.tars = _by_split(stated.files_by_split(config, config.tars, data_root, "source.tars"))
        if self.tars and set(self.tars) != set(self.manifests):
            raise InputError(f"manifests and tars must name the same splits, given {sorted(self.manifests)} and {sorted(self.tars)}")
        self.audio = None if self.tars else AudioFolder(data_root, config)

    def items(self) -> list[Item]:
        """All rows, sorted by key. Raises InputError naming file and line."""
        self.unmatched = []
        items = [item for split, manifests in self.manifests.items() for item in self._split_items(split, manifests)]
        if self.audio:
            self.unmatched = self.audio.unlisted(item.payload["audio"] for item in items)
        return sorted(items, key=lambda item: item.key)

    def _split_items(self, split: str, manifests: list[Path]) -> Iterator[Item]:
        members = self._members(split) if self.tars else {}
        rows = [
            (f"{path}, line {n}", self._with_shard(row, path, len(manifests), split) if self.tars else row)
            for path in manifests
            for n, row in read_jsonl(path, self.config.encoding)
        ]
        names = [self._name(row, where) for where, row in rows]
        uses: dict[str, int] = {}
        for name in names:
            uses[name] = uses.get(name, 0) + 1
        seen: dict[str, int] = {}
        short, rows_with = _short(members), Counter(_stem(name) for name in {_SUB.sub("", name) for name in names})
        several = {name for shard, name in members if (None, name) not in members}
        held, wanted = {name for _, name in members}, {_SUB.sub("", name) for name in names}
        spelled = paired_forms(wanted - held, held - wanted)
        used: set[tuple[str, int]] = set()
        absent: list[str] = []
        for name, (where, row) in zip(names, rows, strict=True):
            number = seen[name] = seen.get(name, -1) + 1
            called = f"{name}#{number}" if uses[name] > 1 else name
            below = self._below(name)
            key = f"{clean_name(below)[:70]}-{number:06d}" if uses[name] > 1 else clean_name(below)
            if self.config.key_field:
                if self.config.key_field not in row:
                    raise InputError(unknown_name("field", self.config.key_field, row, f"{where}; card: source.key_field"))
                called = str(row[self.config.key_field])
                key = clean_name(called)
            payload = {"audio": name, **_span(row, where)}
            if self.tars:
                member = spelled.get(_SUB.sub("", name), _SUB.sub("", name))
                shard = _shard(row)
                location = members.get((shard, member)) or members.get((None, member))
                if not location and rows_with[_stem(name)] == 1:
                    location = short.get((shard, _stem(name))) or short.get((None, _stem(name)))
                hint = f"`{member}` is in several tars: rows need `{_SHARD}`" if member in several else f"no member `{member}` in the tars"
                payload |= location or {"problem": hint}
                if location:
                    used.add((location.get("tar", ""), location.get("at", 0)))
                else:
                    absent.append(name)
            taken = (_AUDIO, _OFFSET, _SHARD, self.config.key_field)
            yield Item(key, split, scalars({field: value for field, value in row.items() if field not in taken}), payload, called)
        if self.tars:
            all_of_them = {(place.get("tar", ""), place.get("at", 0)): name for (_, name), place in members.items()}
            unused = sorted(name for place, name in all_of_them.items() if place not in used)
            self.unmatched += unmatched("rows have no member in the tars", absent, len(rows))
            self.unmatched += unmatched("members of the tars are named by no row", unused, len(all_of_them))

    def _with_shard(self, row: dict[str, Any], manifest: Path, manifests: int, split: str) -> dict[str, Any]:
        """The row with its tar's number: of a sharded manifest (manifest_3.json beside audio_3.tar) all rows are of that tar."""
        tars = {int(number[1]) for path in self.tars[split] if (number := _NUMBER.search(path.name))}
        number = _NUMBER.search(manifest.name)
        if _SHARD in row or not number or not 1 < manifests == len(tars) or int(number[1]) not in tars:
            return row
        return {**row, _SHARD: int(number[1])}

    def _members(self, split: str) -> dict[tuple[int | None, str], dict[str, Any]]:
        """(shard, member name) -> payload; (None, member name) too, if only one tar has it. A tar's name ends with its shard number."""
        out: dict[tuple[int | None, str], dict[str, Any]] = {}
        tars_with: dict[str, int] = {}
        for path in self.tars[split]:
            number = _NUMBER.search(path.name)
            for member in list_tar(path):
                payload = member_payload(path, self.root, member)
                tars_with[member.name] = tars_with.get(member.name, 0) + 1
                out[None, member.name] = payload
                if number:
                    out[int(number[1]), member.name] = payload
        for name, count in tars_with.items():
            if count > 1:
                del out[None, name]
        return out

    def _below(self, name: str) -> str:
        """The path below the root, for a key: the same wherever the corpus lies. The last part of a path that leads elsewhere."""
        path = PurePosixPath(self.audio.placed(name) if self.audio else name)
        return path.name if path.is_absolute() else str(path)

    def _name(self, row: dict[str, Any], where: str) -> str:
        if not isinstance(row.get(_AUDIO), str) or not row[_AUDIO]:
            raise InputError(f"field `{_AUDIO}` must be a path; the row has {', '.join(sorted(row)) or 'nothing'} ({where})")
        return str(row[_AUDIO])

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each row's part of its file or member."""
        if self.audio:
            yield from read_files(items, self.audio.find)
            return
        yield from read_members(items, self.root, [path for tars in self.tars.values() for path in tars])


def _by_split(files: list[tuple[str, Path]]) -> dict[str, list[Path]]:
    out: dict[str, list[Path]] = {}
    for split, path in files:
        out.setdefault(split, []).append(path)
    return out


def _stem(name: str) -> str:
    """What NeMo's own loader matches rows and members by: the file's name without folders and suffix."""
    return _SUB.sub("", PurePosixPath(name).stem)


Members = dict[tuple[int | None, str], dict[str, Any]]


def _short(members: Members) -> Members:
    """(shard, short name) -> payload, for the short names that one member has."""
    named: dict[tuple[int | None, str], set[str]] = {}
    for shard, name in members:
        named.setdefault((shard, _stem(name)), set()).add(name)
    return {(shard, stem): members[shard, min(names)] for (shard, stem), names in named.items() if len(names) == 1}


def _shard(row: dict[str, Any]) -> int | None:
    """The number of the tar that a row names, as a number or as digits; another value names none."""
    value = row.get(_SHARD)
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _span(row: dict[str, Any], where: str) -> dict[str, float]:
    out = {}
    for field, name in ((_OFFSET, "start"), (_SECONDS, "seconds")):
        value = row.get(field)
        if value is None:
            continue
        if not is_number(value) or value < 0:
            raise InputError(f"`{field}` must be seconds, given `{str(value)[:40]}` ({where})")
        out[name] = float(value)
    if "start" not in out:
        out.pop("seconds", None)  # the whole file: its stated duration may be rounded
    return out
