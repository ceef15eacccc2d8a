"""Walks the pages of an Ogg file: streams one after another are each read, streams side by side, gaps and a missing end are refused.

Source: RFC 3533. libsndfile reads the first stream of a chain, and what is there of a stream that was cut.
"""

from __future__ import annotations

import io

from speechkd.data.audio.chunks import Stream
from speechkd.data.audio.containers import Layout
from speechkd.data.audio.flac_frames import flac

_CODECS = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus", b"\x7fFLAC": "FLAC"}
FLAC_HEADER = 9
"""Bytes before `fLaC` in the first packet of FLAC in Ogg: a mark, a version, a count of headers (https://xiph.org/flac/ogg_mapping.html)"""
_NAMED = {b"Speex   ": "Speex", b"\x80theora": "Theora", b"fishead\0": "Skeleton", b"\x80kate": "Kate", b"BBCD": "Dirac"}


def ogg(data: bytes) -> Layout:
    """The streams of a chain, each as a file of its own; FLAC without its pages, since not every libFLAC reads Ogg."""
    starts: list[int] = []
    native: list[list[bytes]] = []  # of each stream that is FLAC, what its pages hold
    number = serial = -1
    ended, at, size = False, 0, len(data)
    while at < size:
        if data[at : at + 4] != b"OggS":
            if size - at < 65_536 and not any(data[at:]):
                break
            return Layout(problem=f"{size - at} bytes from byte {at} on are no Ogg page")
        segments = data[at + 26] if at + 27 <= size else 0
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if at + 27 + segments > size or end > size:
            return Layout(problem=f"ends within a page: its last {end - size if end > size else '27 or more'} bytes are missing")
        flags, stream = data[at + 5], int.from_bytes(data[at + 14 : at + 18], "little")
        page = int.from_bytes(data[at + 18 : at + 22], "little")
        if flags & 2:
            content = data[at + 27 + segments : end]
            if not any(content.startswith(first) for first in _CODECS):
                name = next((name for first, name in _NAMED.items() if content.startswith(first)), "an unknown codec")
                return Layout(problem=f"is Ogg with {name}; read are Vorbis, Opus and FLAC")
            if starts and not ended:
                return Layout(problem="holds streams side by side" if number == 0 else _no_end(len(starts)))
            starts.append(at)
            native.append([content[FLAC_HEADER:]] if content.startswith(b"\x7fFLAC") else [])
        elif not starts or stream != serial:
            return Layout(problem="holds a page of a stream that does not begin in it: its beginning is missing")
        elif page != number + 1:
            return Layout(problem=f"pages {number + 1} to {page - 1} are missing" if page > number else f"page {page} comes after {number}")
        elif native[-1]:
            native[-1].append(data[at + 27 + segments : end])
        number, serial, ended, at = page, stream, bool(flags & 4), end
    if not ended:
        return Layout(problem=_no_end(len(starts)))
    ends = [*starts[1:], size]
    pieces = []
    for first, last, inside in zip(starts, ends, native, strict=True):
        found = flac(Stream(io.BytesIO(bare := b"".join(inside)), len(bare)), True) if inside else Layout()
        if found.problem:
            return found
        pieces.append(found.pieces[0] if found.pieces else bare if inside else data[first:last])
    return Layout(pieces if len(pieces) > 1 or native[0] else ())


def _no_end(number: int) -> str:
    return f"no page ends its stream{f' {number}' if number > 1 else ''}: the end is missing"
