"""Corpus cards: where a dataset is, which metadata to keep, and which questions its labels answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from speechkd.core.config import NAME_PATTERN, Config, build, read_extending
from speechkd.core.errors import DataError, InputError
from speechkd.core.files import digest
from speechkd.core.seeds import derive
from speechkd.core.text import composed
from speechkd.core.types import Metadata, Scalar
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.card_names import check_fields, check_values
from speechkd.data.sources import SOURCES, stated
from speechkd.data.sources.base import Item, Source, Unmatched, unmatched
from speechkd.data.sources.joins import Join, join
from speechkd.data.sources.paths import data_root
from speechkd.data.storage.names import MAX_KEY, distinct_name, is_name

PART = "-part"
"""Stands between key and number where a long clip is split into parts"""
SPLIT_PATHS = ("file", "path", "manifest", "cuts", "dir", "tars")
"""Keys of sources that may be a mapping of split to path"""
LONGEST_SPLIT_KEY = MAX_KEY - len(PART) - 4
"""Leaves room for PART and a part number of four digits"""


class Task(Config):
    """A question whose answer is a metadata field; `when` restricts it to samples whose metadata has these values.

    `instruction` is one question for all samples; `instruction_field` names a metadata field that holds one question per sample.
    With an empty `instruction` the clip itself is the question.
    """

    instruction: str = ""
    instruction_field: str = ""
    field: str
    kind: Literal["choice", "words", "characters"]
    """how answers are scored: `choice`: must equal the label; `words`: share of the label's words that are right; `characters`: of its
    characters, for scripts without spaces"""
    choices: list[str] = []
    when: dict[str, Scalar] = {}

    @model_validator(mode="after")
    def _asks_something(self) -> Task:
        if bool(self.instruction_field) and bool(self.instruction) or not {"instruction", "instruction_field"} & self.model_fields_set:
            raise ValueError("a task has either `instruction` or `instruction_field`, not both or none")
        return self

    def question(self, metadata: Metadata) -> str:
        """The question for a sample with this metadata."""
        return str(metadata[self.instruction_field]) if self.instruction_field else self.instruction


class HoldOut(Config):
    """Holds out a share of the items as a split, for corpora without one. Chosen by a hash: items stay as the corpus grows.

    Splits are drawn one after another, those with `by` first; each share is a share of the remaining items. Rows of a text file need
    `key_field`: keys that are line numbers change when lines are added or removed.
    """

    share: float = Field(gt=0, lt=1)
    by: str = ""
    """metadata name: items with the same value (one speaker, say) stay together; empty: items of one audio file do, others go by key"""


class Card(Config):
    """One corpus. Every key is part of the card's digest, so a published version can never change."""

    name: str = Field(pattern=NAME_PATTERN, max_length=64)
    version: str = Field(pattern=NAME_PATTERN, max_length=64)
    licence: str = Field(min_length=1)
    homepage: str = ""
    description: str = ""
    source: dict[str, Any]
    """`kind` names an entry of SOURCES; the rest is that source's own Config"""
    audio: AudioLimits = AudioLimits()
    fields: dict[str, str] = {}
    """raw field -> metadata name; fields not named here keep their own name"""
    joins: list[Join] = []
    """tables that add raw fields to the items"""
    drop: list[str] = []
    """metadata names to discard"""
    values: dict[str, dict[str, Scalar]] = {}
    """metadata name -> raw value -> new value; other values stay"""
    constants: dict[str, Scalar] = {}
    """metadata to add to every sample"""
    combine: dict[str, list[str]] = {}
    """new metadata name -> names whose values it joins with spaces, for answers that need several facts; absent where one is missing"""
    hold_out: dict[str, HoldOut] = {}
    """new split -> the share of all items that moves into it; shares `by` a field are taken first"""
    tasks: dict[str, Task] = {}
    grows: str | None = Field(default=None, pattern=NAME_PATTERN, max_length=64)
    """an earlier version of this dataset: unchanged shards are reused, only new and changed items are written"""
    shard_samples: int = Field(default=500, ge=1)
    quarantine_rate: float = Field(default=0.05, ge=0, le=1)
    """the stage fails if a larger share of the items is rejected"""
    unmatched_rate: float | None = Field(default=None, ge=0, le=1)
    """largest share of a list's entries that another list may not know (text without audio, audio without text); absent: 0.9 where two
    lists name the same things, any share of audio that no list names"""

    text_only: bool | None = None
    """what items without audio are in a corpus of audio: true: text-only samples; false: rejected; absent: the card is refused. A source
    with an empty `audio_field` is a corpus of texts"""

    @model_serializer(mode="wrap")
    def _without_later_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys added later are left out when unset, so that digests and published cards stay what they were."""
        later = ("unmatched_rate", "text_only")
        return {name: value for name, value in write(self).items() if name not in later or value is not None}

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if self.audio.min_seconds > self.audio.max_seconds:
            raise ValueError(f"audio.min_seconds ({self.audio.min_seconds}) is above audio.max_seconds ({self.audio.max_seconds})")
        for raw, name in self.fields.items():
            if list(self.fields.values()).count(name) > 1:
                raise ValueError(f"fields: `{raw}` and another field are both mapped to `{name}`")
        if self.grows == self.version:
            raise ValueError(f"grows: version `{self.version}` cannot grow from itself; name the earlier one")
        for key, names in (("tasks", self.tasks), ("hold_out", self.hold_out)):
            for name in names:
                if not is_name(name):
                    raise ValueError(f"{key}: `{name}` must be letters, digits, _ or -")
        if self.audio.over_long == "split" and 2 * self.audio.min_seconds > self.audio.max_seconds:
            raise ValueError("audio: to split, max_seconds must be at least twice min_seconds")
        return self

    @property
    def keeps_texts(self) -> bool:
        """Whether an item without audio is a sample."""
        return self.text_only is True or self.source.get("audio_field") == ""

    @property  # not cached: a changed copy of a model would carry the old one along
    def digest(self) -> str:
        """sha256 of the whole card. Keys added later are omitted when unset, so that old digests stay valid."""
        return digest(self.model_dump(mode="json", exclude={name for name in ("combine", "hold_out") if not getattr(self, name)}))


def load_card(path: Path, check_source: bool = True) -> Card:
    """Read a card, merged over the card that it `extends` (the same corpus in another language, say).

    `check_source=False` does not validate the `source` block: a published card must stay readable when its source kind has changed.
    Raises InputError for a missing file, an unknown key, an unknown source kind.
    """
    card = build(Card, read_extending(path), str(path))
    if check_source:
        _source_config(card, str(path))
    return card


def allow_outside(path: Path) -> None:
    """Let a card bring in a source outside the package, because the user gave this card. Not for cards that data or a run folder names."""
    block = read_extending(path).get("source")
    for _ in range(2):  # `rows` of a source that reads another one's
        if isinstance(block, dict):
            SOURCES.allow(block.get("kind"))
            block = block.get("rows")


def open_source(card: Card, card_dir: Path) -> Source:
    """Open the card's source, below the data root. Raises MissingData if the raw data is not there."""
    kind, config = _source_config(card, f"card `{card.name}`")
    return kind(config, data_root(card_dir))


def _source_config(card: Card, where: str) -> tuple[type[Source], Config]:
    kind = card.source.get("kind")
    if not isinstance(kind, str):
        raise InputError(f"key `kind` is missing; allowed: {', '.join(SOURCES)} ({where}: source)")
    source = SOURCES.get(kind, f"{where}: source.kind")
    return source, build(source.Config, card.source, f"{where}: source")


@dataclass(frozen=True)
class Listing:
    """What a card's corpus lists, before any audio is read."""

    items: list[Item]
    unmatched: list[Unmatched]
    """entries of one list that another does not know, within the shares that the card allows"""


def list_items(card: Card, source: Source, card_dir: Path) -> list[Item]:
    """The items of `list_corpus`."""
    return list_corpus(card, source, card_dir).items


def list_corpus(card: Card, source: Source, card_dir: Path) -> Listing:
    """All items of a card, sorted by key, with the card's metadata names and values; and what its lists do not know of each other.

    Raises InputError for no items, a key that cannot name a tar member, a key given twice, a name of the card that no item has, or more
    unmatched entries than the card allows.
    """
    items = _apart(_listed(card, source))
    strays = list(getattr(source, "unmatched", []))
    _within(strays, card)
    if not items:
        raise InputError(f"card `{card.name}`: its source has no items: do its path, `pattern` and `suffixes` fit the data? (card: source)")
    for before, item in zip([None, *items], items, strict=False):
        _check_names(item, card)
        if before is not None and before.key == item.key:
            raise InputError(
                f"key `{item.key}` is given twice, by {_place(before)} and {_place(item)}: remove one, or name a field that tells "
                f"items apart where the source has `key_field` (card `{card.name}`)"
            )
    items, of_joins = join(items, card.joins, data_root(card_dir))
    _within(of_joins, card)
    _refuse_unread_splits(card, items)
    present = set(source.field_names)
    for item in items:
        present.update(item.metadata)
    check_fields(card, present)
    out = [_held_out(replace(item, metadata=_metadata(item, card)), card) for item in items]
    check_values(card, items, out)
    return Listing(out, strays + of_joins + _alike_but_for_case(items))


def _listed(card: Card, source: Source) -> list[Item]:
    """The source's items. A list may hold anything: what its reader did not foresee is one line too, as it is for audio."""
    try:
        return source.items()
    except (InputError, DataError, OSError, MemoryError):
        raise
    except Exception as error:  # noqa: B902
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"a list of this corpus cannot be read, {reason} (card `{card.name}`: source of kind {card.source['kind']})"
        ) from error


def _apart(items: Sequence[Item]) -> list[Item]:
    """The items sorted by key. Where cleaning made keys of different names equal, each but an unchanged name gets a digest of its name."""
    out: list[Item] = []
    for key, group in groupby(sorted(items, key=lambda item: item.key), key=lambda item: item.key):
        same = list(group)
        clash = not key or len({item.name for item in same}) > 1
        out += [replace(i, key=distinct_name(i.name, LONGEST_SPLIT_KEY)) if clash and i.name not in ("", key) else i for i in same]
    return sorted(out, key=lambda item: item.key)


def _alike_but_for_case(items: Sequence[Item]) -> list[Unmatched]:
    """What to say about keys such as `A1` and `a1`: all are stored, but unpacked on Windows or macOS one overwrites the other."""
    counts = Counter(item.key.casefold() for item in items)
    alike = [item.key for item in items if counts[item.key.casefold()] > 1]
    return unmatched("keys differ from another in case only: do not unpack the tars on Windows or macOS", alike, len(items), lookup=True)


def _place(item: Item) -> str:
    """Where an item comes from, for a message."""
    where = next((str(item.payload[name]) for name in ("tar", "audio") if item.payload.get(name)), "a row")
    return f"`{where}` of split `{item.split}`" + (f", line {item.payload['line']}" if "line" in item.payload else "")


def _within(strays: Sequence[Unmatched], card: Card) -> None:
    """Refuse the first entry that is beyond its share, and items without audio if the card does not say what they are."""
    for stray in strays:
        if stray.without_audio and card.text_only is None:
            raise InputError(
                f"{stray}: mend them, or set `text_only: true` to store them as texts, `text_only: false` to reject them "
                f"(card `{card.name}`)"
            )
        allowed = stray.limit if card.unmatched_rate is None else card.unmatched_rate
        if not stray.lookup and stray.count > allowed * stray.of:
            raise InputError(
                f"{stray}; allowed {allowed:.1%}: make the lists agree, or set `unmatched_rate` to a larger share (card `{card.name}`)"
            )


def _refuse_unread_splits(card: Card, items: Sequence[Item]) -> None:
    """Refuse a card that names no split although a field of its items does, such as `split: test` in every second row."""
    block = card.source["rows"] if isinstance(card.source.get("rows"), dict) else card.source
    if {"split", "split_field", "splits"} & set(block) or any(isinstance(block.get(key), dict) for key in SPLIT_PATHS):
        return
    for field in stated.FIELDS:
        values = Counter(str(item.metadata[field]) for item in items if field in item.metadata)
        others = {value for value in values if stated.kind_of(value) != "train"}
        if others and all(map(stated.kind_of, values)) and {stated.kind_of(item.split) for item in items} == {"train"}:
            config = SOURCES.get(str(block["kind"]), "source.kind").Config
            raw = f"`split_field: {field}` takes it" if "split_field" in config.model_fields else "a list for each split takes it"
            listed, split = ", ".join(f"{value[:40]} {values[value]}" for value in sorted(values)), items[0].split
            raise InputError(
                f"field `{field}` states splits ({listed}), but all items are in `{split}`: {raw}; `split: {split}` says that it is meant "
                f"(card `{card.name}`: source)"
            )


def _held_out(item: Item, card: Card) -> Item:
    """The item in the first held-out split that draws it, else in the source's split. Rules with `by` go first, then by split name.

    A rule with `by` skips items that do not have that field.
    """
    for split, rule in sorted(card.hold_out.items(), key=lambda pair: (not pair[1].by, pair[0])):
        drawn_by = item.metadata.get(rule.by) if rule.by else item.payload.get("audio") or item.key  # one clip may have several questions
        if drawn_by is not None and derive(0, "hold_out", split, str(drawn_by)) % 1_000_000 < 1_000_000 * rule.share:
            return replace(item, split=split)
    return item


def _check_names(item: Item, card: Card) -> None:
    if not is_name(item.split):  # first: a key may be made from it
        way_out = "name each split's files in the card's source, as {NAME: PATH}, or correct `split_field`"
        raise InputError(
            f"split `{item.split[:100]}` of `{item.key[:100]}` must be 1 to {MAX_KEY} of A-Z a-z 0-9 _ -: {way_out} (card `{card.name}`)"
        )
    if not is_name(item.key):
        raise InputError(
            f"key `{item.key[:100]}` must be 1 to {MAX_KEY} of A-Z a-z 0-9 _ -: name another `key_field`, or set "
            f"`clean_keys: true` (card `{card.name}`: source)"
        )
    if card.audio.over_long == "split" and (len(item.key) > LONGEST_SPLIT_KEY or PART in item.key):
        raise InputError(
            f"key `{item.key}` must have at most {LONGEST_SPLIT_KEY} characters and no `{PART}` to be split: shorten "
            f"the keys, or set `over_long: refuse` (card `{card.name}`: audio)"
        )


def _metadata(item: Item, card: Card) -> dict[str, Scalar]:
    """The item's metadata by the card: renamed, values mapped, fields dropped, constants added, fields combined; in this order."""
    out: dict[str, Scalar] = {}
    for raw, value in item.metadata.items():
        name = card.fields.get(raw, raw)
        if name in out or name in card.constants:
            raise InputError(f"item `{item.key}` has two fields for `{name}`: map one of them to another name (fields)")
        out[name] = _renamed(card.values[name], value) if name in card.values else value
    kept = {name: value for name, value in out.items() if name not in card.drop} | card.constants
    combined = {name: parts for name, parts in card.combine.items() if all(part in kept for part in parts)}
    return kept | {name: " ".join(str(kept[part]) for part in parts) for name, parts in combined.items()}


def _renamed(values: Mapping[str, Scalar], value: Scalar) -> Scalar:
    """The new value of a raw one, in whichever Unicode form it is written; other values stay."""
    text = str(value)
    if text in values or text.isascii():
        return values.get(text, value)
    return {composed(raw): new for raw, new in values.items()}.get(composed(text), value)


def split_into_shards(items: Sequence[Item], size: int) -> list[list[Item]]:
    """The items of each shard. Depends on the sorted items only, never on the number of partitions."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
