"""Walks the frames of an MP3: what its VBR header claims may be missing, or be true of the first of several joined files only.

Sources: ISO 11172-3 and 13818-3 (frame headers), the Xing and LAME tags as mpg123 reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from speechkd.data.audio.containers import ID3V1_BYTES, Layout, tag_bytes

_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
LATE = 529
"""Samples by which a decoder's filters are late"""


@dataclass(slots=True)
class Part:
    """Frames that one header describes."""

    start: int
    """of its header frame, or of its first frame"""
    first: int
    """of its first frame with sound"""
    kind: tuple[int, bool]
    """(Hz, mono)"""
    header: int = -1
    """place of the number of frames in its Xing header; -1: none"""
    counted: int = -1
    """the number of frames that its header claims; -1: none"""
    frames: int = 0
    end: int = 0


@lru_cache(maxsize=4096)
def _frame(second: int, third: int) -> tuple[int, int]:
    """(bytes of a frame, Hz) by the second and third byte of its header; (0, 0): no layer III frame, or one of free format."""
    version, rate = second >> 3 & 3, third >> 2 & 3
    if second & 0xE6 != 0xE2 or version == 1 or rate == 3:
        return 0, 0
    hertz, kbits = _RATES[version][rate], _KBITS[version == 3][third >> 4]
    return ((144 if version == 3 else 72) * kbits * 1000 // hertz + (third >> 1 & 1), hertz) if kbits else (0, 0)


def mp3(data: bytes, start: int) -> Layout:
    """The parts of an MP3 whose frames begin at `start`, each with a header that is true of it."""
    parts, problem = _walk(data, start)
    if not parts:
        return Layout(problem=problem or "holds no MP3 frame")
    problem = next((why for part in parts if (why := _short(part))), problem)
    if len({part.kind for part in parts}) > 1:
        said = " then ".join(f"{hertz} Hz {'mono' if mono else 'stereo'}" for hertz, mono in dict.fromkeys(part.kind for part in parts))
        return Layout(problem=f"its parts differ: {said}")
    if len(parts) == 1 and parts[0].header >= 0 and parts[0].counted == parts[0].frames and data[:1] != b"\0":
        return Layout(problem=problem)
    return Layout([_whole(data, part) for part in parts if part.frames], problem)


def _short(part: Part) -> str:
    return f"header says {part.counted} frames, holds {part.frames}" if part.counted > part.frames + 1 else ""


def _walk(data: bytes, at: int) -> tuple[Sequence[Part], str]:
    size, parts = len(data), list[Part]()
    while at < size:
        length, hertz = _frame(data[at + 1], data[at + 2]) if at + 4 <= size and data[at] == 0xFF else (0, 0)
        if not length:
            after = _skipped(data, at)
            if after == at:
                return parts, f"{size - at} bytes from byte {at} on are no MP3 frames"
            at = after
            continue
        if at + length > size:
            return parts, f"its last frame is cut: {at + length - size} bytes are missing"
        kind = (hertz, data[at + 3] >> 6 == 3)
        name, place, counted = _header(data, at, length)
        last = parts[-1] if parts else None
        if last is None or name or last.kind != kind or last.frames == last.counted and _goes_on(data, at + length):
            last = Part(at, at + length if name else at, kind, place if name == "Xing" else -1, counted)
            parts.append(last)
        last.frames += not name
        at += length
        last.end = at
    return parts, ""


def _goes_on(data: bytes, at: int) -> bool:
    """Whether another frame follows: a header that counts itself too, or not, is one off, and no part begins."""
    return at + 3 < len(data) and data[at] == 0xFF and _frame(data[at + 1], data[at + 2])[0] > 0


def _header(data: bytes, at: int, length: int) -> tuple[str, int, int]:
    """(Xing, VBRI or "" if a frame holds no header, place of the number of frames, that number); -1: the header has none."""
    place = at + 4 + _side_bytes(data[at + 1], data[at + 3])
    for each in (place, place + 2):  # after a checksum
        if data[each : each + 4] in (b"Xing", b"Info") and each + 12 <= at + length:
            counts = data[each + 7] & 1
            return "Xing", each + 8 if counts else -1, int.from_bytes(data[each + 8 : each + 12], "big") if counts else -1
    if data[at + 36 : at + 40] == b"VBRI" and at + 54 <= at + length:
        return "VBRI", at + 50, int.from_bytes(data[at + 50 : at + 54], "big")
    return "", -1, -1


def _side_bytes(second: int, fourth: int) -> int:
    """Bytes of a frame's side information."""
    mono = fourth >> 6 == 3
    return (17 if mono else 32) if second >> 3 & 3 == 3 else (9 if mono else 17)


def _skipped(data: bytes, at: int) -> int:
    """The place after a tag or after zeros; `at` if there is neither."""
    if data[at : at + 3] == b"TAG" and len(data) - at in (ID3V1_BYTES, ID3V1_BYTES + 227):
        return len(data)
    if tag := tag_bytes(data[at : at + 10]):
        return min(at + tag, len(data))
    if data[at : at + 8] == b"APETAGEX":
        return min(at + 32 + int.from_bytes(data[at + 12 : at + 16], "little"), len(data))
    if data[at : at + 11] == b"LYRICSBEGIN":
        end = max(data.find(b"LYRICS200", at), data.find(b"LYRICSEND", at))
        return end + 9 if end > 0 else at
    if data[at] == 0:
        rest = data[at:].lstrip(b"\0")
        return len(data) - len(rest)
    return at


def _whole(data: bytes, part: Part) -> bytes:
    """The part as a file of its own, whose header counts its frames.

    A part without a header gets one, with a frame of silence after it: the decoder leaves out as many samples at a beginning as its own
    filters are late (529), and the header's delay makes that the silent frame, no more.
    """
    if part.header >= 0:
        return data[part.start : part.header] + part.frames.to_bytes(4, "big") + data[part.header + 4 : part.end]
    second, third, fourth = data[part.first + 1] | 1, data[part.first + 2] & 0x0C | 0x80, data[part.first + 3]
    length, side = _frame(second, third)[0], bytes(_side_bytes(second, fourth))
    delay = (1152 if second >> 3 & 3 == 3 else 576) - LATE
    tag = b"LAME3.100" + bytes(12) + (delay << 12 | LATE).to_bytes(3, "big")
    empty = bytes([0xFF, second, third, fourth]) + side
    header = empty + b"Xing" + (1).to_bytes(4, "big") + (part.frames + 1).to_bytes(4, "big") + tag
    return header.ljust(length, b"\0") + empty.ljust(length, b"\0") + data[part.first : part.end]
