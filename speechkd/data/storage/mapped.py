"""Random access to tar members by memory map, with digest checks."""

from __future__ import annotations

import mmap
import time
from collections import OrderedDict
from threading import Lock
from typing import BinaryIO

from speechkd.core.errors import DataError, InputError
from speechkd.data.storage.cache import LIMIT, CacheFull
from speechkd.data.storage.files import Files
from speechkd.data.storage.tar import Member, member_problem

OPEN_TARS = 64
WAIT_S = 60.0
"""How long to wait for other processes to release cached files"""


class MappedTars:
    """The tars of one manifest, mapped on first read, at most OPEN_TARS at a time. Maps are not pickled: loader workers make their own."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._maps: OrderedDict[str, tuple[memoryview, BinaryIO]] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Files]:
        return {"files": self.files}

    def __setstate__(self, state: dict[str, Files]) -> None:
        self.__init__(state["files"])  # type: ignore[misc]

    def member(self, name: str, member: Member, label: str) -> bytes:
        """A member's bytes. Raises DataError naming the tar and `label` (the member) if they are not what its digest says."""
        data = self._map(name)
        problem = member_problem(data, member)
        if problem and self._forget(name):
            data = self._map(name)
            problem = member_problem(data, member)
        if problem:
            raise DataError(f"{self.files.where(name)}: member `{label}` {problem}")
        return bytes(data[member.offset : member.offset + member.size])

    def _map(self, name: str) -> memoryview:
        with self._lock:  # the loader thread and the main thread both read
            return self._mapped(name)

    def _mapped(self, name: str) -> memoryview:
        if name in self._maps:
            self._maps.move_to_end(name)
            return self._maps[name][0]
        stream = self._open(name)
        try:
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            stream.close()
            raise DataError(f"{self.files.where(name)}: cannot be read ({error})") from None
        self._maps[name] = data, stream  # the open file keeps a cached copy from being removed
        if len(self._maps) > OPEN_TARS:
            self._drop_oldest()
        return data

    def _open(self, name: str) -> BinaryIO:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                return self.files.open(name)
            except CacheFull:  # our own maps hold files too: release them, then wait for others
                while self._maps:
                    self._drop_oldest()
                if time.monotonic() > end:
                    raise InputError(f"{self.files.where(name)}: the cache is full of files in use: raise {LIMIT}") from None
                time.sleep(0.05)

    def _forget(self, name: str) -> bool:
        """Drop the cached copy of a remote tar, so that it is fetched again."""
        with self._lock:
            if not self.files.forget(name):
                return False
            if name in self._maps:
                self._maps.pop(name)[1].close()
            return True

    def _drop_oldest(self) -> None:
        self._maps.popitem(last=False)[1][1].close()
