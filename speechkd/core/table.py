"""Tables of named parts: one line a part, imported only when asked for, an unknown name answered with the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Generic, TypeVar

from speechkd.core.errors import InputError, unknown_name

T = TypeVar("T")


class Table(Generic[T]):
    """Names -> `module:attribute`, for parts that a recipe or card picks by name."""

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind, self.entries = kind, entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def get(self, name: str, where: str = "") -> T:
        """The part called `name`. Raises InputError with the allowed names and the nearest."""
        if name not in self.entries:
            raise InputError(unknown_name(self.kind, name, self.entries, where))
        module, _, attribute = self.entries[name].partition(":")
        part: T = getattr(import_module(module), attribute)
        return part
