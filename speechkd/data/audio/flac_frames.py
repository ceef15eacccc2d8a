"""The true length of a FLAC stream: the number and the size of its last frame. Its header's length may be 0 (unknown), or another file's.

Source: RFC 9639, section 9 (frame headers).
"""

from __future__ import annotations

import re

from speechkd.data.audio.chunks import Stream
from speechkd.data.audio.containers import ID3V1_BYTES, Layout

TAIL = 1 << 20
"""Bytes of the end to look for the last frame in"""
_SYNC = re.compile(b"\xff[\xf8\xf9]")
_ANOTHER = re.compile(b"fLaC[\x00\x80]\x00\x00\x22")
_RATES = dict(enumerate((88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000), 1))
_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
_FIXED = {1: 192, **{code: 576 << code - 2 for code in range(2, 6)}, **{code: 256 << code - 8 for code in range(8, 16)}}


def _table(polynomial: int, bits: int) -> list[int]:
    out, top = [], 1 << bits - 1
    for each in range(256):
        value = each << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value & top else 0)
        out.append(value & (1 << bits) - 1)
    return out


_CRC8, _CRC16 = _table(0x07, 8), _table(0x8005, 16)


def flac(stream: Stream, whole: bool) -> Layout:
    """The stream with its true length in the header. `whole`: all of it is the clip, so nothing may be left over or missing."""
    start = _metadata_end(stream)
    if start < 0 or start >= stream.size:
        return Layout()  # no frame: the decoder says so
    info = stream.at(8, 34)
    said = int.from_bytes(info[10:18], "big") & (1 << 36) - 1
    if lie := _lie(info, stream.at(start, 16)):
        return Layout(problem=lie)
    if said and not whole:
        return Layout()
    end, sound = _last_frame(stream, start, int.from_bytes(info[2:4], "big"))
    problem = ""
    if whole and (another := _another(stream, start)) >= 0:
        problem = f"holds another FLAC file after its end: {stream.size - another} bytes"
    elif said and end != said:
        problem = f"header says {said} samples, holds {f'frames of {end}' if end >= 0 else 'no whole frame at its end'}"
    elif not sound:
        problem = "its last frame is cut or damaged, or bytes are left over after it"
    if said or end < 0:
        return Layout(problem=problem)
    data = stream.at(0, stream.size)
    return Layout([data[:18] + (int.from_bytes(data[18:26], "big") | end).to_bytes(8, "big") + data[26:]], problem)


def _lie(info: bytes, head: bytes) -> str:
    """What the header says of the sound and its first frame does not: it would be played too fast, or at another level."""
    if _frame_end(head, 1) < 0:
        return ""  # the decoder says so
    packed, code, kind = int.from_bytes(info[10:14], "big"), head[2] & 15, head[3] >> 4
    extra = int.from_bytes(head[_rate_at(head) :][: 1 if code == 12 else 2], "big")
    of_frame = {12: extra * 1000, 13: extra, 14: extra * 10}.get(code, _RATES.get(code, 0)), 2 if kind > 7 else kind + 1
    said = packed >> 12, (packed >> 9 & 7) + 1
    bits, frame_bits = (packed >> 4 & 31) + 1, _BITS.get(head[3] >> 1 & 7, 0)
    for one, other, what in (*zip(said, of_frame, (" Hz", " channels")), (bits, frame_bits, " bits")):
        if other and one != other:
            return f"header says {one}{what}, its frames {other}{what}"
    return ""


def _rate_at(head: bytes) -> int:
    """Place of a frame's own sample rate: after its number and its length."""
    more = 0 if head[4] < 0x80 else 7 - (head[4] ^ 0xFF).bit_length()
    return 5 + more + max(0, (head[2] >> 4) - 5 if head[2] >> 4 in (6, 7) else 0)


def _metadata_end(stream: Stream) -> int:
    at = 4
    while at + 4 <= stream.size:
        head = stream.at(at, 4)
        at += 4 + int.from_bytes(head[1:4], "big")
        if head[0] & 0x80:
            return at
    return -1


def _another(stream: Stream, at: int) -> int:
    """Place of another FLAC file's first bytes, -1: there is none."""
    step = 4 << 20
    while at < stream.size:
        if found := _ANOTHER.search(stream.at(at, step + 8)):
            return at + found.start()
        at += step
    return -1


def _last_frame(stream: Stream, start: int, block: int) -> tuple[int, bool]:
    """Samples up to the end of the last frame (-1: there is none); whether its checksum ends with the file, or before a tag or zeros."""
    headers: list[tuple[int, int]] = []
    for size in (TAIL >> 5, TAIL):
        tail = stream.at(max(start, stream.size - size), size)
        found = [match.start() for match in _SYNC.finditer(tail)]
        ends = [_frame_end(tail[at : at + 16], block) for at in found]
        headers = [pair for pair in zip(found, ends, strict=True) if pair[1] >= 0][-8:]  # of 10,000 places, one only looks like a header
        for stop in _ends(tail):
            for at, end in reversed(headers):
                if _crc(tail[at:stop], _CRC16, 16) == 0:
                    return end, True
    return (headers[-1][1] if headers else -1), False


def _ends(tail: bytes) -> list[int]:
    """Where the last frame may end: at the end, or before a tag, or before zeros (of which a checksum may have two)."""
    ends = [len(tail)]
    if tail[-ID3V1_BYTES:][:3] == b"TAG":
        ends.append(len(tail) - ID3V1_BYTES)
    if tail[-1:] == b"\0":
        ends += [len(tail.rstrip(b"\0")) + zeros for zeros in range(3)]
    return ends


def _crc(data: bytes, table: list[int], bits: int) -> int:
    value, mask = 0, (1 << bits) - 1
    for each in data:
        value = (value << 8 & mask) ^ table[(value >> bits - 8) ^ each]
    return value


def _frame_end(head: bytes, block: int) -> int:
    """Samples of the stream up to the end of the frame that has this header; -1: it is no frame's."""
    if len(head) < 6 or head[2] >> 4 == 0 or head[2] & 15 == 15 or head[3] >> 4 > 10 or head[3] & 1:
        return -1
    first = head[4]
    more = 0 if first < 0x80 else 8 - (first ^ 0xFF).bit_length() - 1
    if more < 0 or more > 6 or 0x80 <= first < 0xC0 or len(head) < 5 + more + 3:
        return -1
    number = first if not more else first & (1 << 6 - more) - 1
    for each in head[5 : 5 + more]:
        if each & 0xC0 != 0x80:
            return -1
        number = number << 6 | each & 0x3F
    at, size, rate = 5 + more, head[2] >> 4, head[2] & 15
    if size in (6, 7):
        samples = int.from_bytes(head[at : at + size - 5], "big") + 1
        at += size - 5
    else:
        samples = _FIXED[size]
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if at >= len(head) or _crc(head[:at], _CRC8, 8) != head[at]:
        return -1
    return number + samples if head[1] & 1 else number * block + samples
