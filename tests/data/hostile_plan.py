"""What a hostile corpus is made of: odd names, texts and encodings, and which of its lists name which items.

Everything that belongs to item `n` carries the number: its clip is `FRAMES + n` samples long, its text is `<n ... n>`, its speaker `s<n>`.
So a test can tell whether a text went to another clip, and whether each thing that any list names is stored, quarantined or counted.
"""

from __future__ import annotations

import random
import struct
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FRAMES = 1600
_NOISE = random.Random(0).randbytes(4000).replace(b"\x7f", b"\x10").replace(b"\x80", b"\x10")
NAMES = [
    "早安", "晚安", "谢谢", "สวัสดี", "ສະບາຍດີ", "မင်္ဂလာပါ", "ជំរាបសួរ", "говорит", "молчали", "é1", "e\u03012", "각", "😀", "a_b", "a,b",
    "a;b", "a'b", 'a"b', "a\\b", "a%20b", "$HOME", "`id`", "a|b", "UPPER", "upper", "0", "00", "007", "1e3", "nan", "null", "true", "no",
    "-1", "--", "#c", "[x]", "{x}", "a=b", "~", "con", "x" * 90 + "1", "x" * 90 + "2", "a@b", "a+b", "a&b", "*", "?", "İ", "ß", "ẞ",
    "a-part000", "<b>", "\u200bz",
]  # fmt: skip
SPACED = ["a b", "c d", "d  e", "早 安", "f\u00a0g", "h\u3000i"]
DOTTED = ["a.b", "a..b", "v1.0", "a.wav", "a.tar.gz", "a.txt", "talk.1", "talk"]
TEXTS = [
    "", 'He said "hi"', '"open', 'close"', "it's", "a,b;c", "# no comment", "line\u2028two", "nel\x85", "vt\x0bff\x0c", "mark\ufeffin",
    "null", "NaN", "<|im_end|></AUDIO>", "مرحبا", "ไทย", "မြန်မာ", "e\u0301 é", "a\\nb", "=1+1", "fs\x1cgs\x1d", "{x} %s $HOME", "—“”",
    "|", "\u3000wide", "tab\there",
]  # fmt: skip
ENCODINGS = [("utf-8", False), ("utf-8-sig", False), ("utf-16", False), ("utf-16-le", True), ("gb18030", True), ("cp1252", True)]


@dataclass
class Plan:
    """Which numbers each list of a corpus names, how they are called, and how files are written."""

    rng: random.Random
    folder: Path
    names: dict[int, str]
    texts: dict[int, str]
    audio: set[int]
    """numbers with an audio file"""
    broken: set[int]
    """of them, those whose file is no whole audio"""
    listed: set[int]
    texted: set[int]
    spoken: set[int]
    """numbers with a speaker"""
    encoding: str = "utf-8"
    stated: bool = False
    newline: str = "\n"

    def order(self, numbers: Iterable[int]) -> list[int]:
        out = sorted(numbers)
        self.rng.shuffle(out)
        return out

    def spelled(self, number: int) -> str:
        """The name, which some lists write in another Unicode form than others."""
        form: Any = self.rng.choice(["NFC", "NFD"])
        return unicodedata.normalize(form, self.names[number]) if self.rng.random() < 0.4 else self.names[number]

    def put(self, name: str, lines: Iterable[str], encoding: str = "") -> Path:
        """A text file of these lines; some end without a line end, some have empty lines."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = self.newline.join(lines) + self.rng.choice(["", self.newline, 2 * self.newline])
        path.write_bytes(text.encode(encoding or self.encoding))
        return path

    def how(self) -> dict[str, str]:
        return {"encoding": self.encoding} if self.stated else {}

    def clips(self, where: str = "a") -> None:
        for number in self.order(self.audio):
            path = self.folder / where / f"{self.names[number]}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.bytes_of(number))

    def bytes_of(self, number: int) -> bytes:
        whole = clip(FRAMES + number)
        return self.rng.choice([b"", whole[: len(whole) // 2], whole[:30], b"<html>", bytes(999)]) if number in self.broken else whole


@dataclass
class Corpus:
    """A source block, and what must become of it."""

    source: dict[str, Any]
    items: set[int]
    """numbers that become items"""
    lost: set[int] = field(default_factory=set)
    """items without audio that can be read: quarantined"""
    textless: set[int] = field(default_factory=set)
    """items that are text alone, as the layout allows"""
    strays: dict[str, set[int]] = field(default_factory=dict)
    """what one list names and the items do not have -> numbers; the words are a part of what is said"""
    lacking: dict[str, set[int]] = field(default_factory=dict)
    """items that a list does not know -> numbers"""
    texts: dict[int, str] = field(default_factory=dict)
    speakers: set[int] = field(default_factory=set)
    joins: list[dict[str, Any]] = field(default_factory=list)


def clip(frames: int) -> bytes:
    """A WAV file of so many samples."""
    data = (_NOISE * (frames // 2000 + 1))[: 2 * frames]
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
        + (b"data" + struct.pack("<I", len(data)) + data)
    )
