"""Names that are valid in a tar member: keys and splits."""

from __future__ import annotations

import re
from hashlib import sha256

MAX_KEY = 80
"""A USTAR name holds 100 bytes; the longest suffix, `.signals.safetensors`, takes 20 of them."""
KEY_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_AUDIO_SUFFIX = re.compile(r"\.(?:wav|flac|mp3|ogg|opus|m4a|sph|mp4)$", re.IGNORECASE)


def is_name(text: str) -> bool:
    """Whether `text` is valid in a member name: [A-Za-z0-9_-]+, no dot, at most MAX_KEY characters."""
    return 0 < len(text) <= MAX_KEY and KEY_LETTERS.issuperset(text)


def clean_name(text: str) -> str:
    """Turn `text` into a key: drop an audio suffix, replace invalid characters with `_`, shorten long names to end with a digest."""
    text = without_suffix(text)
    name = _cleaned(text)
    return name if len(name) <= MAX_KEY else f"{name[:MAX_KEY - 13]}-{_digest(text)}"


def distinct_name(text: str, longest: int = MAX_KEY) -> str:
    """Like `clean_name`, but always with a digest of the whole text, so that names which clean to the same key stay apart."""
    return f"{_cleaned(without_suffix(text))[:longest - 13]}-{_digest(text)}"


def without_suffix(text: str) -> str:
    """The name without the suffix of an audio file."""
    return _AUDIO_SUFFIX.sub("", text)


def _cleaned(text: str) -> str:
    return "".join(letter if letter in KEY_LETTERS else "_" for letter in text)


def _digest(text: str) -> str:
    try:
        data = text.encode("utf-8", "surrogateescape")  # a file's name may be bytes that are no text
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")  # JSON may hold half a character
    return sha256(data).hexdigest()[:12]
