"""The source interface: list a corpus's items without reading audio, then read the audio of some items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from speechkd.core.config import Config as AnyConfig
from speechkd.core.errors import InputError
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected


class MissingData(InputError):
    """The card is valid, but nothing of its raw data is there yet; the message says where to put it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One raw sample before its audio is read."""

    key: str
    """[A-Za-z0-9_-]+, unique in the corpus, stable between versions"""
    split: str
    metadata: dict[str, Scalar]
    """by raw field name; the card's `fields` renames them"""
    payload: dict[str, Any] = field(default_factory=dict)
    """what the source needs to read the audio; JSON-serialisable"""
    name: str = ""
    """what the corpus calls the item, where `key` is that name cleaned: tells apart items whose cleaned names are equal"""

    def plain(self) -> dict[str, Any]:
        """Fields as a dict, not copied: `dataclasses.asdict` copies every value, which is slow for millions of items."""
        return {"key": self.key, "split": self.split, "metadata": self.metadata, "payload": self.payload}


PAIRED = 0.9
"""Largest share of unmatched entries between two lists that name the same things, if the card sets none"""


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Entries of one list of a corpus that another does not know (text without audio, say): shown, and refused beyond a share."""

    what: str
    """the entries and the fault, to follow `3 of 5`: lines of `k/text` name no utterance"""
    count: int
    of: int
    example: str
    limit: float = PAIRED
    """allowed share if the card sets no `unmatched_rate`; 1: any"""
    lookup: bool = False
    """a list that may serve a larger corpus (speakers, say): shown, and refused by no share"""
    without_audio: bool = False
    """items of a corpus of audio that have none: the card says what they are (`text_only`)"""
    line: str = ""
    """the whole line, where it is not said as `3 of 5`"""

    def __str__(self) -> str:
        example = self.example[:80].encode(errors="backslashreplace").decode()  # a name may be no Unicode
        return self.line or f"{self.count} of {self.of} {self.what}, e.g. `{example}`"


def unmatched(what: str, names: Sequence[str], of: int, limit: float = PAIRED, lookup: bool = False) -> list[Unmatched]:
    """The entry about these names of `of` in all; empty if there are none."""
    return [Unmatched(what, len(names), of, names[0], limit, lookup)] if names else []


def without_audio(what: str, names: Sequence[str], of: int) -> list[Unmatched]:
    """The entry about items of a corpus of audio that have none; empty if there are none."""
    return [Unmatched(what, len(names), of, names[0], limit=1.0, without_audio=True)] if names else []


class Source(Protocol):
    """Reads one raw layout. `Config` is the card's `source` block (with `kind`)."""

    Config: ClassVar[type[AnyConfig]]
    field_names: set[str]
    """field names declared by the layout (a table header, say), known after `items()`; empty if only the items have them"""
    unmatched: list[Unmatched]
    """what one list names and another does not know, after `items()`"""

    def __init__(self, config: Any, data_root: Path) -> None:
        """Paths in `config` are below `data_root`. Raises MissingData if the raw data is missing."""

    def items(self) -> list[Item]:
        """All items, sorted by key. Depends only on the config and the raw data. Raises InputError, MissingData."""

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Read the audio of some items, in order, one result per item (None: text-only). The caller runs it in a fresh child process."""
