"""Tables of named parts (losses, projectors, teachers, sources): a part is imported on first use; unknown names get the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Generic, TypeVar

from pydantic import BeforeValidator

from speechkd.core.config import Config
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


def part_of(table: Table[Any], key: str) -> BeforeValidator:
    """Validates a configuration block by the `Config` of the part that it names: `Annotated[LossConfig, part_of(LOSSES, "kind")]`.

    `key` is the block's key that holds the name. A ready Config passes as it is. The validator refuses a block without the key and an
    unknown name, and lists the names of the table.
    """

    def validate(block: Any) -> Any:
        if isinstance(block, Config):
            return block
        if not isinstance(block, dict) or key not in block:
            raise ValueError(f"must be a mapping with `{key}`; allowed: {', '.join(sorted(table))}")
        return table.get(str(block[key])).Config.model_validate(block)

    return BeforeValidator(validate)
