"""Opens text that others wrote: byte order marks, a stated encoding or UTF-8, and every form of line end, the same way everywhere."""

from __future__ import annotations

import codecs
import io
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from speechkd.core.errors import InputError

MAX_LINE = 16 << 20
"""Bytes of one line; a longer one is refused without being loaded"""
MARK = "\ufeff"
_HEAD = 1 << 16
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def text_encoding(name: str) -> str:
    """Validate the name of an encoding (empty: UTF-8). Raises ValueError if there is none of this name, or it is not one of text."""
    try:
        "".encode(name or "utf-8")
    except LookupError:
        raise ValueError(f"unknown encoding `{name}`; usual ones: utf-8, utf-16, cp1252, latin-1, gb18030, shift_jis") from None
    return name


def text_lines(path: Path, encoding: str = "", stream: Any = None) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of a file, or of an open byte stream with `peek` (which may decompress).

    A byte order mark says the encoding; otherwise it is `encoding`, or UTF-8. Marks at the beginning of later lines (joined files) go too.
    Lines end with LF or CR LF, or with CR in a file that has no LF. Raises InputError naming file and line.
    """
    number = 0
    try:
        with path.open("rb", buffering=_HEAD) if stream is None else stream as raw:
            for number, line in enumerate(_decoded(raw, encoding, path), 1):
                if "\0" in line:
                    raise InputError(
                        f"holds a NUL character, so it is no plain text: state its `encoding`, utf-16 say ({path}, line {number})"
                    )
                yield number, line.rstrip("\r\n").removeprefix(MARK)
    except UnicodeDecodeError as error:
        raise InputError(_not(error, f"{path}, line {number + 1}")) from None
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read `{path}`: {error}") from None


def _decoded(raw: Any, encoding: str, path: Path) -> Iterator[str]:
    head = raw.peek(_HEAD)
    codec = _codec(head, encoding, str(path))
    text = head.decode(codec, "ignore")
    only_cr = "\r" in text and "\n" not in text
    if only_cr or codec.startswith(("utf-16", "utf-32")):
        wrapped = io.TextIOWrapper(raw, encoding=codec, newline="\r" if only_cr else "\n")
        for number, line in enumerate(iter(lambda: wrapped.readline(MAX_LINE + 1), ""), 1):
            yield _short(line, number, path)
    else:  # as bytes, so that a byte that is no text is known by its line
        for number, data in enumerate(iter(lambda: raw.readline(MAX_LINE + 1), b""), 1):
            yield _short(data, number, path).decode(codec)


def _short(line: Any, number: int, path: Path) -> Any:
    if len(line) > MAX_LINE:
        raise InputError(f"is longer than {MAX_LINE} bytes ({path}, line {number})")
    return line


def read_text(path: Path, encoding: str = "", limit: int | None = None) -> str:
    """A whole file as `decode_text` gives it. Raises InputError for one that is unreadable or has more than `limit` bytes."""
    try:
        with path.open("rb") as stream:
            data = stream.read() if limit is None else stream.read(limit + 1)
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error}") from None
    if limit is not None and len(data) > limit:
        raise InputError(f"`{path}` has more than {limit} bytes")
    return decode_text(data, str(path), encoding)


def decode_text(data: bytes, where: str, encoding: str = "") -> str:
    """Bytes as text without a byte order mark, lines ending with LF. Raises InputError naming `where`."""
    try:
        text = data.decode(_codec(data[:4], encoding, where))
    except UnicodeDecodeError as error:
        raise InputError(_not(error, where)) from None
    if "\0" in text:
        raise InputError(f"holds a NUL character, so it is no plain text: state its `encoding`, utf-16 say ({where})")
    return text.removeprefix(MARK).replace("\r\n", "\n").replace("\r", "\n")


def _codec(head: bytes, encoding: str, where: str) -> str:
    stated = codecs.lookup(encoding or "utf-8").name
    marked = next((codec for mark, codec in _MARKS if head.startswith(mark)), "")
    if marked and encoding and not stated.startswith(marked[:6].rstrip("-")):
        raise InputError(f"begins with the byte order mark of {marked}, but `encoding` says {encoding}: leave it out ({where})")
    return marked or stated


def _not(error: UnicodeDecodeError, where: str) -> str:
    return f"is not {error.encoding} text: {error.reason}; state the `encoding` that it has, cp1252 say ({where})"


def printable(text: str) -> str:
    r"""The text as UTF-8 can write it: half a surrogate pair, which JSON and file names may hold, is spelt out (`\ud83d`)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC): `é` may be written as one character or as two, and means the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def paired_forms(lone: Iterable[str], spare: Iterable[str]) -> dict[str, str]:
    """Name of `lone` -> name of `spare` that only differs from it in Unicode form, where one alone of each has that form."""
    forms: dict[str, tuple[set[str], set[str]]] = {}
    for side, names in enumerate((lone, spare)):
        for name in names:
            if not name.isascii():
                forms.setdefault(composed(name), (set(), set()))[side].add(name)
    return {one.pop(): other.pop() for one, other in forms.values() if len(one) == len(other) == 1}


def folded(text: str) -> str:
    """The text for comparing: composed, without difference of case."""
    return composed(composed(text).casefold())
