"""Random access to tar members by memory map; nothing is used before its digest is checked."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from speechkd.core.errors import DataError
from speechkd.data.tar import Member, member_problem

OPEN_TARS = 64


class MappedTars:
    """The tars of one folder, mapped when first read, at most OPEN_TARS at a time. Pickles as its folder: loader workers map their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._maps: OrderedDict[str, memoryview] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Path]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]

    def member(self, name: str, member: Member, label: str) -> bytes:
        """A member's bytes. Raises DataError naming the tar and `label` (the member) if they are not what its digest says."""
        data = self._map(name)
        problem = member_problem(data, member)
        if problem:
            raise DataError(f"{self.root / name}: member `{label}` {problem}")
        return bytes(data[member.offset : member.offset + member.size])

    def problem(self, name: str, member: Member) -> str | None:
        """What is wrong with a member, or None."""
        return member_problem(self._map(name), member)

    def _map(self, name: str) -> memoryview:
        with self._lock:  # a run reads from its feed and from its own thread
            return self._mapped(name)

    def _mapped(self, name: str) -> memoryview:
        if name in self._maps:
            self._maps.move_to_end(name)
            return self._maps[name]
        try:
            with (self.root / name).open("rb") as stream:
                data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise DataError(f"{self.root / name}: cannot be read ({error})") from None
        self._maps[name] = data
        if len(self._maps) > OPEN_TARS:
            self._maps.popitem(last=False)
        return data
