"""What every source gives: items that can be listed without touching audio, and the audio of one block of them."""

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
    """A card is right, but its raw data is not where it says; the message says where to put it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One raw sample before its audio is read."""

    key: str
    """[A-Za-z0-9_-]+, unique in the corpus, stable between versions"""
    split: str
    metadata: dict[str, Scalar]
    """raw field names; the card's `fields` maps them"""
    payload: dict[str, Any] = field(default_factory=dict)
    """what the source itself needs to read the audio; JSON-able"""

    def plain(self) -> dict[str, Any]:
        """Its fields by name, not copied: `dataclasses.asdict` copies every value, which a corpus of millions feels."""
        return {"key": self.key, "split": self.split, "metadata": self.metadata, "payload": self.payload}


class Source(Protocol):
    """A raw layout. `Config` is its block in the card (with `kind`)."""

    Config: ClassVar[type[AnyConfig]]
    field_names: set[str]
    """fields that the layout names, known after `items()`, also where no item has a value; empty where the items alone say them"""

    def __init__(self, config: Any, data_root: Path) -> None:
        """Paths in `config` are below `data_root`. Raises MissingData where the raw data is not there."""

    def items(self) -> list[Item]:
        """All items, sorted by key; a pure function of config and inputs. Raises InputError, MissingData."""

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Audio of one block, in order, one result per item (None: text-only). The caller runs it in a fresh child process."""
