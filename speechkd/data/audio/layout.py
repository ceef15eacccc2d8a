"""What a file holds, seen from its structure: never from a length that its header claims."""

from __future__ import annotations

import io
import os

from speechkd.data.audio.chunks import CHUNKED, Stream
from speechkd.data.audio.containers import LOOK, Layout, container, tag_bytes
from speechkd.data.audio.flac_frames import flac
from speechkd.data.audio.mp3_frames import mp3
from speechkd.data.audio.ogg_pages import ogg

FORMATS = {
    "FLAC": {"FLAC"},
    "WAV": {"WAV", "WAVEX", "RF64"},
    "W64": {"W64"},
    "AIFF": {"AIFF"},
    "AU": {"AU"},
    "CAF": {"CAF"},
    "NIST": {"NIST"},
    "OGG": {"OGG", "FLAC"},
    "MP3": {"MP3", "MPEG"},
}
"""Containers that are read, and libsndfile's names of them"""
MOST_WALKED = 2 << 30
"""Bytes of a file that is walked in memory"""
_seen: tuple[tuple[int, ...], tuple[str | None, Layout]] | None = None


def layout_of(stream: io.FileIO | io.BytesIO, whole: bool) -> tuple[str | None, Layout]:
    """(container, layout); no container: the problem says what it is. `whole`: the file is one clip, not a recording of many."""
    global _seen
    if whole or not isinstance(stream, io.FileIO):
        return _layout(stream, whole)
    stat = os.fstat(stream.fileno())  # the spans of a recording mostly follow one another: it is walked once
    name = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if _seen is None or _seen[0] != name:
        _seen = name, _layout(stream, whole)
    return _seen[1]


def _layout(stream: io.FileIO | io.BytesIO, whole: bool) -> tuple[str | None, Layout]:
    view = Stream(stream, stream.seek(0, io.SEEK_END))
    tag = _tags(view)
    magic = view.at(tag, LOOK)
    kind, why = container(magic)
    if kind is None and not any(magic) and 0 < tag + len(magic) < view.size:
        tag += _zeros(view, tag)  # padding before an MP3
        kind, why = container(view.at(tag, LOOK)) if view.at(tag, 1) == b"\xff" else (None, why)
    if kind is None:
        return None, Layout(problem=why)
    if kind in ("MP3", "OGG") and view.size > MOST_WALKED:
        return None, Layout(problem=f"has {view.size} bytes, allowed {MOST_WALKED} for {kind}")
    if kind == "MP3":
        return kind, mp3(view.at(0, view.size), tag)
    if tag:  # only an MP3's decoder skips tags
        view = Stream(io.BytesIO(view.at(tag, view.size)), view.size - tag)
    if kind == "OGG":
        found = ogg(view.at(0, view.size))
    elif kind == "FLAC":
        found = flac(view, whole)
    else:
        found = CHUNKED[kind](view)
    return kind, found if found.pieces or not tag else found._replace(pieces=[view.at(0, view.size)])


def _tags(view: Stream) -> int:
    """Bytes of the ID3v2 tags at the beginning."""
    at = 0
    while at < view.size and (tag := tag_bytes(view.at(at, 10))):
        at += tag
    return min(at, view.size)


def _zeros(view: Stream, at: int) -> int:
    """Zero bytes from a place on, up to 1 MiB."""
    found = view.at(at, 1 << 20)
    return len(found) - len(found.lstrip(b"\0"))
