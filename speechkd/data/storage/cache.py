"""Local cache of remote files: fetched once per node, checked against their digest, limited in size.

Files are named by their sha256, so versions that share a shard share its copy. Locks are flock, released when their process ends. A reader
holds a shared lock on its file; eviction removes the least recently used files that nobody holds. The folder belongs on the node's
own disk: one on a file system without locks is refused.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TextIO

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import sha256_bytes, sha256_file
from speechkd.core.locks import NO_LOCKS
from speechkd.data.storage.store import ATTEMPTS, Location, Unreachable, UrlPath, open_filesystem

FOLDER, LIMIT, SCRATCH = "SPEECHKD_CACHE", "SPEECHKD_CACHE_GIB", "SPEECHKD_SCRATCH"
_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_PART = re.compile(r"^\.[0-9a-f]{64}\.(\d+)\..*\.part$")


class CacheFull(Exception):
    """No room: every file that could be evicted is in use."""


def cache_folder() -> Path:
    """For fetched files: SPEECHKD_CACHE; else `speechkd-<user id>` in SPEECHKD_SCRATCH, the node's own disk; else ~/.cache/speechkd."""
    scratch = os.environ.get(SCRATCH)
    return Path(scratch) / f"speechkd-{os.getuid()}" if scratch and not os.environ.get(FOLDER) else _users_folder()


def _users_folder() -> Path:
    return Path(os.environ.get(FOLDER) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speechkd")


@lru_cache(maxsize=1)
def shared_cache() -> Cache:
    """The node's cache, in `cache_folder`; at most SPEECHKD_CACHE_GIB (default: 50, or half of the free disk)."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    given = os.environ.get(LIMIT)
    if given is None:
        disk = os.statvfs(folder)
        return Cache(folder, min(50 << 30, disk.f_bavail * disk.f_frsize // 2))
    try:
        limit = int(float(given) * (1 << 30))
    except ValueError:
        limit = 0
    if limit <= 0:
        raise InputError(f"{LIMIT}={given} must be a number of GiB above 0")
    return Cache(folder, limit)


def working_folder(folder: Location) -> Path:
    """`folder` itself if it is local; for a URL, a local folder derived from it, never on scratch: unfinished work outlives a node."""
    return folder if isinstance(folder, Path) else _users_folder() / "work" / sha256_bytes(str(folder).encode())


class Cache:
    """A folder of files named by their sha256, at most `limit` bytes in total."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def open(self, source: UrlPath, sha256: str, size: int) -> BinaryIO:
        """The file at `source`, fetched if needed, open for reading. It is not evicted until the file and all memory maps of it are closed.

        Raises FileNotFoundError, Unreachable, DataError (digest mismatch), CacheFull, InputError (larger than the cache).
        """
        if not _DIGEST.match(sha256):
            raise DataError(f"{source}: `{sha256[:80]}` is not a sha256")
        if size > self.limit:
            raise InputError(f"{source} has {size} bytes, the cache {self.limit}: raise {LIMIT}")
        path = self.folder / sha256[:2] / sha256
        while True:
            stream = self._held(path)
            if stream:
                return stream
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(f"fetch-{sha256[:2]}"):  # one rank fetches, the others wait
                if not path.exists():
                    self._fetch(source, path, sha256, size)

    def forget(self, sha256: str) -> None:
        """Remove a corrupted file; the next `open` fetches it again."""
        (self.folder / sha256[:2] / sha256).unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of all files; files being fetched count in full."""
        return sum(size for _, size, _ in self._files())

    def _held(self, path: Path) -> BinaryIO | None:
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return None
        _flock(stream, fcntl.LOCK_SH)
        if not os.fstat(stream.fileno()).st_nlink:  # removed between opening and locking
            stream.close()
            return None
        os.utime(stream.fileno())  # the time of last use
        return stream

    def _fetch(self, source: UrlPath, path: Path, sha256: str, size: int) -> None:
        with self._locked("room"):
            self._make_room(size)
            handle, name = tempfile.mkstemp(prefix=f".{sha256}.{size}.", suffix=".part", dir=path.parent)
            _flock(handle, fcntl.LOCK_SH)  # held while fetching; the name reserves the room
        part = Path(name)
        try:
            for attempt in range(ATTEMPTS):
                if attempt:
                    time.sleep(0.2 * 2**attempt)
                try:
                    with open_filesystem(source.url) as (files, remote):
                        files.get_file(remote, name)
                except Unreachable:
                    if attempt + 1 == ATTEMPTS:
                        raise
                    continue
                if part.stat().st_size == size and sha256_file(part) == sha256:
                    os.replace(part, path)
                    return
            raise DataError(f"{source}: bytes differ from their sha256")
        finally:
            part.unlink(missing_ok=True)
            os.close(handle)

    def _make_room(self, size: int) -> None:
        files = sorted(self._files())
        used = sum(each for _, each, _ in files)
        for _, each, path in files:
            dead = path.name.endswith(".part")
            if used + size <= self.limit and not dead:
                continue
            if self._removed(path):
                used -= each
        if used + size > self.limit:
            raise CacheFull

    def _removed(self, path: Path) -> bool:
        """Remove a file unless somebody holds it."""
        try:
            with path.open("r+b") as stream:  # NFSv4 gives an exclusive lock only on a file that is open for writing
                _flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path)."""
        for folder in self.folder.iterdir():
            if len(folder.name) != 2:
                continue
            for path in folder.iterdir():
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    continue
                part = _PART.match(path.name)
                yield facts.st_mtime, int(part.group(1)) if part else facts.st_size, path

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a") as stream:
            _flock(stream, fcntl.LOCK_EX)
            yield


def _flock(stream: BinaryIO | TextIO | int, operation: int) -> None:
    try:
        fcntl.flock(stream, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        way_out = f"set {SCRATCH} (or {FOLDER}) to a folder on the node's own disk"
        raise InputError(f"the cache `{cache_folder()}` is on a file system without locks ({error.strerror}): {way_out}") from None
