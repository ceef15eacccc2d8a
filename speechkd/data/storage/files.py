"""Opens the files of a published version or column as its manifest lists them: local, remote, or in an earlier version's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from speechkd.core.errors import DataError, InputError
from speechkd.data.storage.cache import LIMIT, CacheFull, shared_cache
from speechkd.data.storage.store import Location, Unreachable, UrlPath, sha256_of, size_of


class Files:
    """The files that a manifest lists. Names are relative to `version` / `below`, where `below` is "" or "columns/<name>".

    `entries`: name -> `sha256`, `bytes` and, for a file that an earlier version holds, `in`: that version's name.
    """

    def __init__(self, version: Location, below: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self.version, self.below, self.entries = version, below, entries

    def __str__(self) -> str:
        return str(self.version / self.below if self.below else self.version)

    def where(self, name: str) -> Location:
        """Location of a file."""
        entry = self.entries.get(name, {})
        home = self.version.parent / entry["in"] if "in" in entry else self.version
        return home / self.below / name if self.below else home / name

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. A remote file is fetched and checked first, and stays cached while open.

        Raises DataError if it is missing, unreadable or fails its digest; CacheFull.
        """
        entry, where = self.entries.get(name), self.where(name)
        if entry is None:
            raise DataError(f"{where}: is not in the manifest")
        try:
            if isinstance(where, UrlPath):
                return shared_cache().open(where, entry["sha256"], entry["bytes"])
            size_of(where)  # never wait for a pipe, never read a device
            return where.open("rb")
        except FileNotFoundError:
            raise DataError(f"{where}: cannot be read (no such file)") from None
        except Unreachable:
            raise
        except OSError as error:
            raise DataError(f"{where}: cannot be read ({error.strerror or error})") from None

    @contextmanager
    def checked(self, name: str) -> Iterator[BinaryIO]:
        """A file open for reading, after checking its sha256. Raises DataError."""
        where = self.where(name)
        try:
            stream = self.open(name)
        except CacheFull:
            raise InputError(f"{where}: the cache is full of files in use: raise {LIMIT}") from None
        with stream:
            try:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # BinaryIO is a BufferedReader here
                stream.seek(0)
            except OSError as error:
                raise DataError(f"{where}: cannot be read ({error.strerror})") from None
            if sha256 != self.entries[name]["sha256"]:
                self.forget(name)
                raise DataError(f"{where}: bytes differ from their sha256")
            yield stream

    def read(self, name: str) -> bytes:
        """A whole file, checked against its digest. Raises DataError."""
        with self.checked(name) as stream:
            return stream.read()

    def forget(self, name: str) -> bool:
        """Drop the cached copy of a remote file; False for a local file."""
        if not isinstance(self.where(name), UrlPath):
            return False
        shared_cache().forget(self.entries[name]["sha256"])
        return True

    def problems(self, sizes_only: bool = False) -> Iterator[tuple[str, str]]:
        """(file, problem) for every file that is missing or fails its digest. Reads every file at its source, not from the cache.

        `sizes_only` reads nothing: a file of the stated size passes.
        """
        for name, entry in self.entries.items():
            where = self.where(name)
            in_version = f" (in version {entry['in']})" if "in" in entry else ""
            try:
                size = size_of(where)
                if size != entry["bytes"]:
                    yield name, f"has {size} bytes, must have {entry['bytes']}{in_version}"
                elif not sizes_only and sha256_of(where) != entry["sha256"]:
                    yield name, f"bytes differ from their sha256{in_version}"
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                yield name, f"is missing{in_version}"
