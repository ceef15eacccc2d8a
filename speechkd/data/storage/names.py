"""Names that may stand in a tar member: keys and splits."""

from __future__ import annotations

import re
from hashlib import sha256

MAX_KEY = 80
"""A USTAR name holds 100 bytes; the longest suffix, `.signals.safetensors`, takes 20 of them."""
KEY_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_AUDIO_SUFFIX = re.compile(r"\.(?:wav|flac|mp3|ogg|opus|m4a|sph|mp4)$", re.IGNORECASE)


def is_name(text: str) -> bool:
    """Whether `text` may stand in a member name: [A-Za-z0-9_-]+, no dot, at most MAX_KEY letters."""
    return 0 < len(text) <= MAX_KEY and KEY_LETTERS.issuperset(text)


def clean_name(text: str) -> str:
    """`text` as a key: without an audio file's suffix, `_` for other letters; too long ones end with 12 digits of their sha256."""
    text = _AUDIO_SUFFIX.sub("", text)
    name = "".join(letter if letter in KEY_LETTERS else "_" for letter in text)
    return name if len(name) <= MAX_KEY else f"{name[:MAX_KEY - 13]}-{sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}"
