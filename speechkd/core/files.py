"""Atomic, durable file writes (temporary name, fsync, rename, fsync of the folder), JSON and digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechkd.core.errors import DataError, nearest

CHUNK = 1 << 20


def no_such_file(path: Path) -> str:
    """One line for a file that is not there: the nearest name in its folder, and for a relative path where it was looked for."""
    beside = [entry.name for entry in path.parent.iterdir() if entry.suffix == path.suffix] if path.parent.is_dir() else []
    close = nearest(path.name, beside)
    hint = f"; did you mean `{path.parent / close}`?" if close else ""
    return f"no such file `{path}`{hint}{where_looked(path)}"


def where_looked(path: object) -> str:
    """` (looked in ...)`, which explains a relative path in a message; empty for an absolute one or a URL."""
    relative = isinstance(path, Path) and not path.is_absolute()
    return f" (looked in `{Path.cwd()}`)" if relative else ""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_bytes(data: bytes | memoryview) -> str:
    """sha256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, in hex, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Publish `data` at `path` atomically and durably."""
    with publishing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Publish `text` at `path` atomically and durably, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def readable_json(value: Any) -> str:
    """JSON for people, with sorted keys and a newline at the end: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Publish readable JSON: equal values give equal bytes."""
    write_text(path, readable_json(value))


def read_json(path: Path) -> Any:
    """Read JSON, as UTF-8. Raises DataError for anything else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not readable as JSON: {error} ({path})") from None


def read_json_lines(path: Path) -> list[Any]:
    """Read JSON, one value a line. Raises DataError naming the first bad line."""
    values = []
    # not splitlines(): it also splits at U+2028 and similar characters, which may occur inside JSON strings
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line:
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"not readable as JSON: {error} ({path}, line {number})") from None
    return values
