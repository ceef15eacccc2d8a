"""A corpus card: what a dataset is, where it lies, what is taken from it, and which questions its labels answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from speechkd.core.config import NAME_PATTERN, Config, build, read_yaml
from speechkd.core.errors import InputError, unknown_name
from speechkd.core.files import digest
from speechkd.core.types import Scalar
from speechkd.data.sources import SOURCES
from speechkd.data.sources.base import Item, Source

MAX_KEY = 80
"""A USTAR name holds 100 bytes; the longest suffix, `.signals.safetensors`, takes 20 of them."""
KEY_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


class Task(Config):
    """A question whose answer is a metadata field; `when` restricts it to samples whose metadata has these values."""

    instruction: str
    field: str
    kind: Literal["choice", "words"]
    choices: list[str] = []
    when: dict[str, Scalar] = {}


class AudioLimits(Config):
    """What a clip may be; anything else goes to quarantine."""

    min_seconds: float = Field(default=0.05, ge=0)
    max_seconds: float = Field(default=30.0, gt=0)
    max_channels: int = Field(default=8, ge=1)


class Card(Config):
    """One corpus. Every key is part of the card's digest: a published version never changes what it says."""

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
    tasks: dict[str, Task] = {}
    grows: str | None = Field(default=None, pattern=NAME_PATTERN, max_length=64)
    """an earlier version of this dataset: its unchanged shards are referenced, only new and changed items are written"""
    shard_samples: int = Field(default=500, ge=1)
    quarantine_rate: float = Field(default=0.05, ge=0, le=1)
    """more rejected items than this share fail the stage"""

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if self.audio.min_seconds > self.audio.max_seconds:
            raise ValueError(f"audio.min_seconds ({self.audio.min_seconds}) is above audio.max_seconds ({self.audio.max_seconds})")
        for raw, name in self.fields.items():
            if list(self.fields.values()).count(name) > 1:
                raise ValueError(f"fields: `{raw}` and another field are both mapped to `{name}`")
        if self.grows == self.version:
            raise ValueError(f"grows: version `{self.version}` cannot grow from itself; name the earlier one")
        for name in self.tasks:
            if not is_name(name):
                raise ValueError(f"tasks: `{name}` must be letters, digits, _ or -")
        return self

    @property  # not cached: a changed copy of a model would carry the old one along
    def digest(self) -> str:
        """sha256 over the whole card."""
        return digest(self.model_dump(mode="json"))


def is_name(text: str) -> bool:
    """Whether `text` may stand in a member name: [A-Za-z0-9_-]+, no dot, at most MAX_KEY letters."""
    return 0 < len(text) <= MAX_KEY and KEY_LETTERS.issuperset(text)


def load_card(path: Path, check_source: bool = True) -> Card:
    """Read a card. `check_source=False` leaves the source's own block alone (a published card outlives its source).

    Raises InputError for a missing file, an unknown key, an unknown source kind.
    """
    card = build(Card, read_yaml(path), str(path))
    if check_source:
        _source_config(card, str(path))
    return card


def open_source(card: Card, card_dir: Path) -> Source:
    """The card's source; relative folders in the card are relative to `card_dir`. Raises InputError if its raw data is not there."""
    kind, config = _source_config(card, f"card `{card.name}`")
    return kind(config, card_dir)


def _source_config(card: Card, where: str) -> tuple[type[Source], Config]:
    kind = card.source.get("kind")
    if not isinstance(kind, str):
        raise InputError(f"key `kind` is missing; allowed: {', '.join(SOURCES)} ({where}: source)")
    source = SOURCES.get(kind, f"{where}: source.kind")
    return source, build(source.Config, card.source, f"{where}: source")


def list_items(card: Card, source: Source) -> list[Item]:
    """All items of a card, sorted by key, with the card's metadata names.

    Raises InputError for no items, a key that cannot name a tar member, a key given twice, or a mapped field that no item has.
    """
    items = sorted(source.items(), key=lambda item: item.key)
    if not items:
        raise InputError(f"card `{card.name}`: its source has no items")
    for before, item in zip([None, *items], items, strict=False):
        if not is_name(item.key):
            raise InputError(f"key `{item.key[:100]}` must be 1 to {MAX_KEY} of A-Z a-z 0-9 _ - (card `{card.name}`)")
        if not is_name(item.split):
            raise InputError(f"split `{item.split[:100]}` of `{item.key}` must be 1 to {MAX_KEY} of A-Z a-z 0-9 _ - (card `{card.name}`)")
        if before is not None and before.key == item.key:
            raise InputError(f"key `{item.key}` is given twice (card `{card.name}`)")
    if not card.fields:
        return items
    present = {name for item in items for name in item.metadata}
    for raw in card.fields:
        if raw not in present:
            raise InputError(unknown_name("field", raw, present, f"card `{card.name}`: fields"))
    return [replace(item, metadata=_rename(item, card.fields)) for item in items]


def _rename(item: Item, fields: dict[str, str]) -> dict[str, Scalar]:
    out: dict[str, Scalar] = {}
    for raw, value in item.metadata.items():
        name = fields.get(raw, raw)
        if name in out:
            raise InputError(f"item `{item.key}` has two fields for `{name}`: map one of them to another name (fields)")
        out[name] = value
    return out


def blocks(items: Sequence[Item], size: int) -> list[list[Item]]:
    """The items of each shard: a function of the sorted items alone, never of the number of partitions."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
