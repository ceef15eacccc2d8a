"""Checks every name by which a card refers to its data: fields, choices and raw values that no item has are refused, with the nearest one.

A name that nothing has does nothing: `drop: [clientid]` keeps the client ids. So it is an error, not a key without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Protocol

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.text import composed, folded
from speechkd.core.types import Scalar
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.sources.base import Item

OF_PARTS = ("part", "parts")
"""Fields that the parts of a split clip get"""
CLOSE = 0.75
"""Likeness from which a value that no item has is taken for a slip of one that items have"""
CLASS_VALUES = 1000
"""A field with more values than this is no class, and its values are not compared"""


class HoldOut(Protocol):
    """What a held-out split names."""

    @property
    def by(self) -> str:
        """A metadata name, or empty."""


class Task(Protocol):
    """What a task names."""

    @property
    def field(self) -> str:
        """A metadata name."""

    @property
    def instruction_field(self) -> str:
        """A metadata name, or empty."""

    @property
    def kind(self) -> str:
        """How answers are scored."""

    @property
    def choices(self) -> Sequence[str]:
        """Values of the field."""

    @property
    def when(self) -> Mapping[str, Scalar]:
        """Metadata name -> value."""


class Card(Protocol):
    """The keys of a card that name something of its data (`cards.Card`)."""

    @property
    def name(self) -> str:
        """The card's own name, for messages."""

    @property
    def audio(self) -> AudioLimits:
        """Limits on a clip, which name fields of whole clips."""

    @property
    def fields(self) -> Mapping[str, str]:
        """Raw field -> metadata name."""

    @property
    def drop(self) -> Sequence[str]:
        """Metadata names."""

    @property
    def values(self) -> Mapping[str, Mapping[str, Scalar]]:
        """Metadata name -> raw value -> new value."""

    @property
    def constants(self) -> Mapping[str, Scalar]:
        """New metadata."""

    @property
    def combine(self) -> Mapping[str, Sequence[str]]:
        """New metadata name -> metadata names."""

    @property
    def hold_out(self) -> Mapping[str, HoldOut]:
        """New split -> its rule."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Questions about the metadata."""


def check_fields(card: Card, raw: Collection[str]) -> None:
    """Refuse a name of a field that no item has. `raw`: the raw fields of all items and of the lists' headers. Raises InputError."""
    for name in card.fields:
        _known(name, raw, card, "fields")
    named = {card.fields.get(name, name) for name in raw}
    for name in card.values:
        _known(name, named, card, "values")
    for name in card.drop:
        _known(name, named, card, "drop")
    kept = named - {*card.drop} | {*card.constants}
    for name, parts in card.combine.items():
        for part in parts:
            _known(part, kept, card, f"combine.{name}")
        if name in kept | named:
            raise InputError(f"field `{name}` exists already: combine under another name (card `{card.name}`: combine)")
    for split, rule in card.hold_out.items():
        if rule.by:
            _known(rule.by, kept, card, f"hold_out.{split}.by")
    splits = card.audio.over_long == "split"
    final = kept | {*card.combine} | ({card.audio.duration_field} - {""}) | ({*OF_PARTS} if splits else set())
    for name in card.audio.whole_only if splits and "whole_only" in card.audio.model_fields_set else ():
        _known(name, final, card, "audio.whole_only")
    for name, task in card.tasks.items():
        _known(task.field, final, card, f"tasks.{name}.field")
        if task.instruction_field:
            _known(task.instruction_field, final, card, f"tasks.{name}.instruction_field")
        for field in task.when:
            _known(field, final, card, f"tasks.{name}.when")


def check_values(card: Card, listed: Sequence[Item], items: Sequence[Item]) -> None:
    """Refuse a value that no item has where items have one very like it, which the card does not name: a slip of the pen.

    Values that are only absent, as in a part of a corpus, are allowed. `listed`: the items with raw fields and values; `items`: as they are
    stored. Raises InputError.
    """
    raw_of = {new: old for old, new in card.fields.items()}
    for name, table in card.values.items():
        present = _values(raw_of.get(name, name), listed)
        _no_slip([str(value) for value in table], present, card, f"values.{name}", same=composed)
    for name, task in card.tasks.items():
        if task.kind == "choice":
            _no_slip(task.choices, _values(task.field, items), card, f"tasks.{name}.choices")
        for field, value in task.when.items():
            if isinstance(value, str):
                asked = [str(other.when[field]) for other in card.tasks.values() if field in other.when]
                _no_slip([value], _values(field, items), card, f"tasks.{name}.when.{field}", asked, same=composed)


def _known(name: str, allowed: Iterable[str], card: Card, key: str) -> None:
    if name not in allowed:
        raise InputError(unknown_name("field", name, allowed, f"card `{card.name}`: {key}; no item has it"))


def _values(field: str, items: Sequence[Item]) -> set[str]:
    """The distinct values of a field; none of a field that is no class."""
    found = {item.metadata[field] for item in items if field in item.metadata}
    return {str(value) for value in found} if len(found) <= CLASS_VALUES else set()


def _no_slip(
    given: Sequence[str],
    present: Collection[str],
    card: Card,
    key: str,
    named: Sequence[str] = (),
    same: Callable[[str], str] = folded,
) -> None:
    """Refuse a given value that is absent where a present one that nobody names is very like it. `same`: how values are compared."""
    there, written = {same(value) for value in present}, {same(value) for value in (*given, *named)}
    unnamed = [folded(value) for value in present if same(value) not in written and not _is_number(value)]
    for value in given:
        if same(value) not in there and get_close_matches(folded(value), unnamed, n=1, cutoff=CLOSE):
            raise InputError(unknown_name("value", value, present, f"card `{card.name}`: {key}; no item has it"))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).lstrip("-").isdigit()
