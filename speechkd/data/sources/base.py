"""What every source gives: items that can be listed without touching audio, and the audio of one block of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from speechkd.core.config import Config as AnyConfig
from speechkd.core.types import Scalar


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


@dataclass(frozen=True, slots=True)
class RawClip:
    """Decoded audio as the source has it."""

    samples_TC: np.ndarray
    """float32 in [-1, 1], [T] or [T, C]"""
    rate: int
    """Hz"""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Audio that could not be read; goes to quarantine with this reason."""

    reason: str


class Source(Protocol):
    """A raw layout. `Config` is its block in the card (with `kind`)."""

    Config: ClassVar[type[AnyConfig]]

    def __init__(self, config: Any, card_dir: Path) -> None: ...

    def items(self) -> list[Item]:
        """All items, sorted by key; a pure function of config and inputs. Raises InputError if the raw data is not there."""

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Audio of one block, in order, one result per item (None: text-only). The caller runs it in a fresh child process."""
