"""Uncompressed audio in chunks (WAV, RF64, BW64, W64, AIFF, AU, CAF, NIST SPHERE): how many bytes of audio are said, and are there.

libsndfile takes what is there and says nothing: of a file that was cut, of a second file behind the first, of a size that was never filled
in. Sources: Multimedia Programming Interface 1.0 (RIFF), EBU Tech 3306 (RF64), ITU-R BS.2088 (BW64), Sony W64, Apple AIFF-C and CAF.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import NamedTuple

from speechkd.data.audio.containers import ID3V1_BYTES, Layout

STREAMED = 0x7FFF0000
"""A header with at least this many bytes was written by a program that did not know the length"""
UNKNOWN = (1 << 32) - 1
_WAV_CHUNKS = {"fmt ", "data", "fact", "LIST", "JUNK", "junk", "PAD ", "FLLR", "bext", "iXML", "id3 ", "ID3 ", "cue ", "smpl", "PEAK"}
_ENCODINGS = {0x1, 0x2, 0x3, 0x6, 0x7, 0x11, 0x14, 0x31, 0x32, 0x38, 0x40, 0x50, 0x55, 0xFFFE}
"""Those that libsndfile knows by name"""
_FOREIGN = {0x28F: "G.722", 0x45: "G.726", 0x42: "G.723.1", 0x83: "G.729", 0xFF: "AAC", 0x160: "WMA", 0x161: "WMA", 0x2000: "AC-3"}
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class Stream(NamedTuple):
    """Bytes to look into, by place."""

    file: io.FileIO | io.BytesIO
    size: int

    def at(self, offset: int, count: int) -> bytes:
        self.file.seek(offset)
        out = b""
        while len(out) < count and (more := self.file.read(count - len(out))):
            out += more
        return out


def wav(stream: Stream) -> Layout:
    """RIFF, RIFX, RF64 and BW64. A size that was never filled in is taken from the file's end."""
    magic = stream.at(0, 4)
    order = "big" if magic == b"RIFX" else "little"
    at, known, format_, resynced = 12, -1, b"", False
    while at + 8 <= stream.size:
        name, said = _header(stream, at, order)
        if name == "data":
            break
        if name == "ds64":
            known = int.from_bytes(stream.at(at + 16, 8), "little")
        elif name == "fmt ":
            format_ = stream.at(at + 8, min(said, 4096))
        at += 8 + said + (said & 1)
        if said & 1 and not _is_chunk(stream, at, order) and _is_chunk(stream, at - 1, order):
            at, resynced = at - 1, True  # an odd chunk without its padding byte
    else:
        return Layout()  # no audio: the decoder says so
    tag = int.from_bytes(format_[:2], order)  # type: ignore[arg-type]
    if len(format_) >= 16 and tag not in _ENCODINGS:
        return Layout(problem=f"is WAV with encoding {_FOREIGN.get(tag, f'0x{tag:04X}')}, not PCM, A-law or mu-law")
    start = at + 8
    held = stream.size - start
    if magic in (b"RF64", b"BW64") and said == UNKNOWN:
        said = known if 0 < known < 1 << 62 else UNKNOWN
    streamed = said >= STREAMED and said > held or said == 0 < held and _left_over(stream, start, order)
    whole = (
        Layout([_as_riff(magic, format_, stream.at(start, min(said or held, held) if not streamed else held), order)])
        if (resynced or magic == b"BW64" or streamed and (said == 0 or magic == b"RF64"))
        else Layout()
    )
    if streamed:
        return whole
    return Layout(whole.pieces, _missing(said, held) or _left_over(stream, start + said, order))


def _as_riff(magic: bytes, format_: bytes, data: bytes, order: str) -> bytes:
    """A WAV with true sizes."""
    first = b"RIFX" if magic == b"RIFX" else b"RIFF"

    def sized(name: bytes, content: bytes) -> bytes:
        return name + len(content).to_bytes(4, order) + content + bytes(len(content) & 1)  # type: ignore[arg-type]

    return sized(first, b"WAVE" + sized(b"fmt ", format_) + sized(b"data", data))


def _header(stream: Stream, at: int, order: str) -> tuple[str, int]:
    head = stream.at(at, 8)
    return head[:4].decode("latin-1"), int.from_bytes(head[4:8], order)  # type: ignore[arg-type]


def _is_chunk(stream: Stream, at: int, order: str) -> bool:
    if at + 8 > stream.size:
        return at == stream.size
    name, said = _header(stream, at, order)
    return name in _WAV_CHUNKS or (re.fullmatch("[ -~]{4}", name) is not None and at + 8 + said <= stream.size)


def _left_over(stream: Stream, at: int, order: str) -> str:
    """Describe bytes after the audio that are neither chunks, a tag nor padding, or ""."""
    for padded in (at + (at & 1), at):
        place = padded
        while place + 8 <= stream.size:
            name, said = _header(stream, place, order)
            if name in ("RIFF", "RIFX", "RF64", "BW64", "FORM"):
                return f"holds another file after its end: {stream.size - place} bytes"
            if not _is_chunk(stream, place, order):
                break
            if name in ("data", "SSND"):
                return f"holds a second block of audio: {stream.size - place} bytes are left over"
            place += 8 + said + (said & 1)
        if place >= stream.size or _is_padding(stream, place):
            return ""
    return _after(stream, at)


def _after(stream: Stream, at: int) -> str:
    """The same for a file that may have nothing after its audio."""
    if at >= stream.size or _is_padding(stream, at):
        return ""
    return f"{stream.size - at} bytes are left over after the audio that its header states"


def _is_padding(stream: Stream, at: int) -> bool:
    left = stream.size - at
    return (left == ID3V1_BYTES and stream.at(at, 3) == b"TAG") or (left < 65_536 and not any(stream.at(at, left)))


def _missing(said: int, held: int) -> str:
    return f"header says {said} bytes of audio, holds {held}" if said > held else ""


def w64(stream: Stream) -> Layout:
    """Sony Wave64: chunks named by 16 bytes, sizes of 8 bytes that count the header, padded to 8."""
    at = 40
    while at + 24 <= stream.size:
        name, said = stream.at(at, 16), int.from_bytes(stream.at(at + 16, 8), "little")
        if name == _W64_DATA:
            end = at + said
            after = end + -end % 8
            while stream.at(after, 4) and re.fullmatch(b"[ -~]{4}", stream.at(after, 4)) and stream.at(after + 6, 2) == _W64_DATA[6:8]:
                after += max(24, int.from_bytes(stream.at(after + 16, 8), "little") + 7 & ~7)
            return Layout(problem=_missing(said - 24, stream.size - at - 24) or _after(stream, min(after, stream.size)))
        at += max(24, said + 7 & ~7)
    return Layout()


def aiff(stream: Stream) -> Layout:
    """AIFF and AIFF-C: the number of frames stands in COMM, the audio in SSND."""
    at, frames_bytes = 12, 0
    while at + 8 <= stream.size:
        name, said = _header(stream, at, "big")
        if name == "COMM":
            comm = stream.at(at + 8, 22)
            bits = int.from_bytes(comm[6:8], "big")
            packed = comm[18:22] in (b"ulaw", b"ULAW", b"alaw", b"ALAW")
            frames_bytes = int.from_bytes(comm[2:6], "big") * int.from_bytes(comm[:2], "big") * (1 if packed else -(-bits // 8))
        if name == "SSND":
            held, data = stream.size - at - 16, max(said - 8, 0)
            if not _missing(data, held) and frames_bytes and abs(frames_bytes - data) > 64:
                return Layout(problem=f"header says {frames_bytes} bytes of audio, holds {data}")
            return Layout(problem=_missing(data, held) or _left_over(stream, at + 8 + said, "big"))
        at += 8 + said + (said & 1)
    return Layout()


def caf(stream: Stream) -> Layout:
    """Core Audio Format; a data chunk of size -1 goes on to the file's end."""
    at = 8
    while at + 12 <= stream.size:
        name, said = stream.at(at, 4), int.from_bytes(stream.at(at + 4, 8), "big", signed=True)
        if name == b"data":
            if said < 0:
                return Layout()
            return Layout(problem=_missing(said - 4, stream.size - at - 16) or _caf_rest(stream, at + 12 + said))
        at += 12 + max(said, 0)
    return Layout()


def _caf_rest(stream: Stream, at: int) -> str:
    while at + 12 <= stream.size and re.fullmatch(b"[ -~]{4}", stream.at(at, 4)) and stream.at(at, 4) != b"caff":
        at += 12 + max(int.from_bytes(stream.at(at + 4, 8), "big", signed=True), 0)
    return _after(stream, at)


def au(stream: Stream) -> Layout:
    """Sun and NeXT; a size of 0xFFFFFFFF goes on to the file's end."""
    start, said = (int.from_bytes(stream.at(place, 4), "big") for place in (4, 8))
    if said == UNKNOWN:
        return Layout()
    return Layout(problem=_missing(said, stream.size - start) or _after(stream, start + said))


def nist(stream: Stream) -> Layout:
    """NIST SPHERE: a text header of `name -type value` lines."""
    lines = stream.at(0, 1 << 16).split(b"\n")
    start = int(lines[1]) if len(lines) > 1 and lines[1].strip().isdigit() else 1024
    fields = {words[0]: words[2] for line in lines[:200] if len(words := line.split(None, 2)) == 3}
    coding = fields.get(b"sample_coding", b"pcm").decode("latin-1").strip()
    if "," in coding:
        return Layout(problem=f"is NIST SPHERE with encoding {coding[:60]}, not PCM: convert it with `sph2pipe`")
    try:
        said = int(fields[b"sample_count"]) * int(fields.get(b"channel_count", b"1")) * int(fields.get(b"sample_n_bytes", b"2"))
    except (KeyError, ValueError):
        return Layout(problem="is NIST SPHERE without a sample count")
    return Layout(problem=_missing(said, stream.size - start) or _after(stream, start + said))


CHUNKED: dict[str, Callable[[Stream], Layout]] = {"WAV": wav, "W64": w64, "AIFF": aiff, "CAF": caf, "AU": au, "NIST": nist}
"""The look at each container of uncompressed audio"""
