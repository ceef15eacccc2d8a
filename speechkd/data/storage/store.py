"""File operations on local folders and on URLs that fsspec opens (s3://, gs://, hf://, http://, memory://).

Read, list, publish, and create only if absent. `storage/files.py` adds digest checks by manifest on top. Credentials come from the
environment, never from a URL.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from speechkd.core.errors import InputError
from speechkd.core.files import CHUNK, fsync_folder, publishing, readable_json, sha256_bytes, sha256_file

CONNECT_S, READ_S, ATTEMPTS = 10, 60, 4
"""Seconds to connect and to read per attempt, and number of attempts"""
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {"connect_timeout": CONNECT_S, "read_timeout": READ_S, "retries": {"max_attempts": ATTEMPTS, "mode": "standard"}}
    },
}


class Unreachable(OSError):
    """The server does not answer, or denies access."""


@dataclass(frozen=True, slots=True)
class UrlPath:
    """A location behind a URL, with the subset of pathlib's interface that shards need. Pickles as its URL and is safe to fork."""

    url: str

    def __truediv__(self, name: str) -> UrlPath:
        return UrlPath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last path component."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> UrlPath:
        """The URL without its last path component."""
        return UrlPath(self.url.rpartition("/")[0])

    def read_bytes(self) -> bytes:
        """The whole file. Raises FileNotFoundError, Unreachable."""
        with open_filesystem(self.url) as (files, path):
            data: bytes = files.cat_file(path)
            return data

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole file as text. Raises FileNotFoundError, Unreachable, UnicodeDecodeError."""
        return self.read_bytes().decode(encoding)

    def is_file(self) -> bool:
        """Whether the file exists."""
        with open_filesystem(self.url) as (files, path):
            return bool(files.isfile(path))

    def is_dir(self) -> bool:
        """Whether there is anything below this URL; object stores have no empty folders."""
        with open_filesystem(self.url) as (files, path):
            return bool(files.isdir(path))


Location = Path | UrlPath


def parse_location(text: str | Path | UrlPath) -> Location:
    """Parse a path or URL, into one form: lower-case scheme (and host of http), no default port, no slash at the end; file:// is a path.

    Raises InputError for a URL that no driver opens.
    """
    if isinstance(text, (Path, UrlPath)):
        return text
    scheme, colon, rest = text.partition("://")
    if not colon:
        return Path(text)
    scheme = scheme.lower()
    if scheme == "file":
        return Path("/" + rest.removeprefix("localhost/").lstrip("/"))
    if "::" in text or "@" in rest.partition("/")[0]:
        raise InputError(f"`{scheme}://...` must be a plain URL: credentials come from the environment, and chained URLs are not supported")
    if scheme in ("http", "https") and ("?" in rest or "#" in rest):
        raise InputError(f"`{scheme}://{rest.partition('?')[0]}?...`: the URL of a folder must not have a query or fragment")
    if scheme in ("http", "https"):
        host, slash, path = rest.partition("/")
        rest = host.lower().removesuffix(":80" if scheme == "http" else ":443") + slash + path
    _filesystem(scheme)
    return UrlPath(f"{scheme}://{rest}".rstrip("/"))


def _filesystem(scheme: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **_OPTIONS.get(scheme, {}))
    except ValueError:
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "hf", "http", "https", "file"))
        raise InputError(f"`{scheme}://` is not known to fsspec; allowed are a folder, {known} and fsspec's other protocols") from None
    except ImportError as error:
        raise InputError(f"`{scheme}://` needs a driver: {str(error).splitlines()[0]}") from None


def load_driver(text: str) -> None:
    """Import the driver of a URL without opening it: call before forking."""
    scheme, colon, _ = text.partition("://")
    if colon:
        import fsspec

        fsspec.get_filesystem_class(scheme)


@contextmanager
def open_filesystem(url: str) -> Iterator[tuple[Any, str]]:
    """(fsspec file system for `url`, path in it). Driver errors become Unreachable, except those a caller can handle.

    The file system is looked up at every use: fsspec keeps one per process and thread, so a forked loader gets its own.
    """
    scheme, _, rest = url.partition("://")
    files = _filesystem(scheme)
    try:
        yield files, url if scheme in ("http", "https") else rest
    except (FileNotFoundError, FileExistsError, InputError, Unreachable):
        raise
    except Exception as error:  # every driver has its own exception types
        lines = str(error).splitlines()
        raise Unreachable(f"cannot reach `{url}`: {type(error).__name__}{f': {lines[0]}' if lines else ''}") from None


def _writable(file: UrlPath) -> None:
    if file.url.startswith("http"):
        raise InputError(f"`{file}`: http:// locations are read-only: name a folder or an s3:// URL (--out, data.root)")


def list_folder(folder: Location) -> list[str]:
    """Sorted names in a folder; empty if the folder does not exist."""
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    with open_filesystem(folder.url) as (files, path):
        try:
            listed = files.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted({name.rstrip("/").rpartition("/")[2] for name in listed} - {folder.name, ""})


def size_of(file: Location) -> int:
    """Size of a file in bytes. Raises FileNotFoundError (also for a device or pipe, which may never end), Unreachable."""
    if isinstance(file, Path):
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise FileNotFoundError(errno.ENOENT, "is no regular file", str(file))
        return facts.st_size
    with open_filesystem(file.url) as (files, path):
        return int(files.info(path)["size"])


@contextmanager
def reading(file: Location) -> Iterator[BinaryIO]:
    """A file open for reading at its source, without the cache. Raises FileNotFoundError, Unreachable."""
    if isinstance(file, Path):
        size_of(file)  # never wait for a pipe, never read a device
        with file.open("rb") as stream:
            yield stream
        return
    with open_filesystem(file.url) as (files, path), files.open(path, "rb", block_size=16 * CHUNK, cache_type="readahead") as stream:
        yield stream


def sha256_of(file: Location) -> str:
    """sha256 of a file, in hex, read in chunks without the cache. Raises FileNotFoundError, Unreachable."""
    import hashlib

    if isinstance(file, Path):
        return sha256_file(file)
    total = hashlib.sha256()
    with reading(file) as stream:
        while chunk := stream.read(4 * CHUNK):
            total.update(chunk)
    return total.hexdigest()


def remove(file: Location) -> None:
    """Remove a file if it exists, and fsync the folder."""
    if isinstance(file, Path):
        if file.exists():
            file.unlink(missing_ok=True)
            fsync_folder(file.parent)
        return
    with open_filesystem(file.url) as (files, path):
        try:
            files.rm_file(path)
        except FileNotFoundError:
            pass


def remove_folder(folder: Location) -> None:
    """Remove a folder with all that is in it, if it exists."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with open_filesystem(folder.url) as (files, path):
        try:
            files.rm(path, recursive=True)
        except FileNotFoundError:  # object stores have no folder once its files are gone
            pass


@contextmanager
def publishing_at(file: Location) -> Iterator[Path]:
    """Yield a local temporary path. On success the complete file appears at `file`; on failure, nothing does."""
    if isinstance(file, Path):
        with publishing(file) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="speechkd-") as folder:
        temporary = Path(folder) / "file"
        yield temporary
        _writable(file)
        with open_filesystem(file.url) as (files, path):
            files.put_file(str(temporary), path)  # an object becomes visible only when complete


def put(source: Path, file: Location) -> None:
    """Copy a local file to `file`, which appears there only when it is complete."""
    if isinstance(file, Path):
        with publishing(file) as temporary:
            shutil.copyfile(source, temporary)
        return
    _writable(file)
    with open_filesystem(file.url) as (files, path):
        files.put_file(str(source), path)


def write_bytes(file: Location, data: bytes) -> None:
    """Write `data` to `file` atomically."""
    with publishing_at(file) as temporary:
        temporary.write_bytes(data)


def write_text(file: Location, text: str) -> None:
    """Write `text` to `file` atomically, as UTF-8."""
    write_bytes(file, text.encode("utf-8"))


def write_json(file: Location, value: Any) -> None:
    """Write readable JSON atomically: equal values give equal bytes."""
    write_text(file, readable_json(value))


def create(file: Location, data: bytes) -> None:
    """Write `data` only if `file` does not exist. Of several writers one wins; the others get FileExistsError.

    S3: `If-None-Match: *`; local: a hard link, which never replaces a file.
    """
    if isinstance(file, UrlPath):
        _writable(file)
        with open_filesystem(file.url) as (files, path):
            files.pipe_file(path, data, mode="create")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        os.link(name, file)
        fsync_folder(file.parent)
    finally:
        Path(name).unlink(missing_ok=True)


def entry_of(file: Location) -> dict[str, Any]:
    """File entry of a small file (sha256 and size), for manifests and receipts."""
    data = file.read_bytes()
    return {"sha256": sha256_bytes(data), "bytes": len(data)}
