"""Tables of named parts (losses, projectors, teachers, sources): a part is imported on first use; unknown names get the nearest.

A part may also stand outside the package: `module:NAME`, or the name of an entry point. That is code of somebody's, so it is imported
only where the user's own card or recipe names it (`allow`). Shards, exports, checkpoints and run folders may repeat the name, but never
bring it in. What is allowed is in the environment, so that ranks and shard workers, which are processes of their own, know it too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import BeforeValidator

from speechkd.core.config import Config
from speechkd.core.errors import InputError, unknown_name
from speechkd.core.log import say

T = TypeVar("T")
OUTSIDE = "SPEECHKD_OUTSIDE"
"""Environment variable: names of parts outside the package that may be imported, with commas between them"""
_ADDRESS = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Table(Generic[T]):
    """Names -> `module:attribute`, for parts that a recipe or card picks by name."""

    def __init__(self, kind: str, entries: dict[str, str], group: str = "") -> None:
        """`group`: of the entry points by which other distributions offer such parts."""
        self.kind, self.entries, self.group = kind, entries, group

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def get(self, name: str, where: str = "") -> T:
        """The part called `name`. Raises InputError with the allowed names and the nearest; also for outside code that is not allowed."""
        if name in self.entries:
            module, _, attribute = self.entries[name].partition(":")
            part: T = getattr(import_module(module), attribute)
            return part
        return self._outside(name, where)

    def allow(self, name: object) -> None:
        """Let a part outside the package be imported, because a card or recipe of the user's names it. Does nothing for other names."""
        if not isinstance(name, str) or name in self.entries or not self._address(name) or name in _allowed():
            return
        os.environ[OUTSIDE] = ",".join([*_allowed(), name])
        say(f"{self.kind} `{name}` is code outside speechkd; it runs because your card or recipe names it")

    @cached_property
    def _plugins(self) -> dict[str, str]:
        """Entry points of other distributions: name -> `module:attribute`."""
        return {point.name: point.value for point in entry_points(group=self.group)} if self.group else {}

    def _address(self, name: str) -> str:
        """Where an outside part is; empty for a name that is none."""
        return name if _ADDRESS.fullmatch(name) else self._plugins.get(name, "")

    def _outside(self, name: str, where: str) -> T:
        address, place = self._address(name), f" ({where})" if where else ""
        if not address:
            raise InputError(unknown_name(self.kind, name, [*self.entries, *self._plugins], where))
        if name not in _allowed():
            raise InputError(
                f"{self.kind} `{name}` is code outside speechkd: it runs only where a card or recipe that you give names it; if you trust "
                f"it, set {OUTSIDE}={name}{place}"
            )
        module, _, attribute = address.partition(":")
        try:
            loaded = import_module(module)
        except Exception as error:  # noqa: B902  (whatever a module of somebody's raises)
            raise InputError(
                f"{self.kind} `{name}`: cannot import `{module}` ({type(error).__name__}: {' '.join(str(error).split())[:200]}): install "
                f"it, or put its folder on PYTHONPATH{place}"
            ) from error
        part: Any = getattr(loaded, attribute, None)
        if not isinstance(getattr(part, "Config", None), type):
            wrong = f"there is no `{attribute}` in `{module}`" if part is None else f"`{attribute}` has no `Config`, as every part has"
            raise InputError(f"{self.kind} `{name}`: {wrong} (CONTRIBUTING.md shows one){place}")
        found: T = part
        return found


def _allowed() -> list[str]:
    return [name for name in os.environ.get(OUTSIDE, "").split(",") if name]


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
