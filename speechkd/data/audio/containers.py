"""Names the container of audio bytes, also one that is not read; and says what a look at its structure found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

READ = "is neither FLAC nor WAV, Ogg or MP3"
ID3_HEADER, ID3V1_BYTES = 10, 128
LOOK = 64
"""Bytes that name a container"""

_READ = {
    b"fLaC": "FLAC",
    b"RIFX": "WAV",
    b"RF64": "WAV",
    b"BW64": "WAV",
    b"riff": "W64",
    b".snd": "AU",
    b"caff": "CAF",
    b"NIST": "NIST",
    b"OggS": "OGG",
}
_NAMED = {
    b"\x1aE\xdf\xa3": "Matroska or WebM",
    b"#!AMR": "AMR",
    b"wvpk": "WavPack",
    b"MAC ": "Monkey's Audio",
    b"0&\xb2u": "ASF (WMA)",
    b"ADIF": "AAC",
    b"TTA1": "True Audio",
    b"DSD ": "DSD",
    b"FRM8": "DSD",
    b"ajkg": "Shorten",
    b"FLV\x01": "Flash video",
    b"\x0bw": "AC-3",
    b"\x7f\xfe\x80\x01": "DTS",
    b"Creative Voice File": "VOC",
    b"G@": "an MPEG transport stream",
    b"MThd": "MIDI",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"version https://git-lfs": "a pointer of Git LFS, not the file (`git lfs pull` fetches it)",
    b"#EXTM3U": "a playlist",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"%PDF": "PDF",
    b"\x93NUMPY": "a NumPy array",
    b"\x7fELF": "a program",
}


class Layout(NamedTuple):
    """What the structure of a file says about the audio in it."""

    pieces: Sequence[bytes] = ()
    """complete files whose audio, one after another, is the clip; empty: the file as it is"""
    problem: str = ""
    """bytes that are left over or missing: the file is no whole clip, though a span of it may be read"""


def container(magic: bytes) -> tuple[str | None, str]:
    """(container or None, why it is not read) of a file's first LOOK bytes."""
    if not magic:
        return None, "is empty: 0 bytes"
    if magic[:4] == b"RIFF" and magic[8:12] == b"WAVE":
        return "WAV", ""
    if magic[:4] == b"FORM" and magic[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF", ""
    if magic[:4] in _READ:
        return _READ[magic[:4]], ""
    if magic[:1] == b"\xff" and len(magic) > 1 and magic[1] & 0xE0 == 0xE0:
        layer = magic[1] >> 1 & 3
        if layer == 1:
            return "MP3", ""
        return None, _refused("AAC (ADTS)" if layer == 0 else f"MPEG audio layer {'I' * (4 - layer)}")
    if magic[4:8] == b"ftyp":
        return None, _refused("MPEG-4 (m4a, mp4)")
    for first, name in _NAMED.items():
        if magic.startswith(first):
            return None, _refused(name)
    if magic[:4] == b"RIFF":
        return None, _refused("RIFF " + "".join(chr(each) if 32 <= each < 127 else "?" for each in magic[8:12]))
    if not any(magic):
        return None, f"{READ}: it begins with {len(magic)} zero bytes"
    return None, READ


def _refused(name: str) -> str:
    return f"{READ}: it is {name}" + ("" if name[:2] in ("a ", "PD") or name in ("gzip", "bzip2", "xz", "MIDI") else ", convert it to FLAC")


def tag_bytes(magic: bytes) -> int:
    """Bytes of an ID3v2 tag at the beginning; 0: there is none."""
    if magic[:3] != b"ID3" or len(magic) < ID3_HEADER:
        return 0
    size = 0
    for each in magic[6:10]:
        size = size << 7 | each & 127
    return ID3_HEADER + size + (ID3_HEADER if magic[5] & 0x10 else 0)
