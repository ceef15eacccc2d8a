"""Expands the braces of a card's patterns: {a,b}, {000..511} and NeMo's _OP_000..511_CL_."""

from __future__ import annotations

import re

from speechkd.core.errors import InputError

MAX_BRACES = 100_000
"""Most names that one pattern may expand to."""


def braces(pattern: str) -> list[str]:
    """Expand {a,b}, {000..511} and _OP_000..511_CL_ in a pattern; numbers keep their width."""
    text = re.sub(r"_OP_(\d+\.\.\d+)_CL_", r"{\1}", pattern)
    expanded = [""]
    for plain, inside in re.findall(r"([^{}]+)|\{([^{}]*)\}", text):
        parts = [plain] if plain else _alternatives(inside, pattern)
        if len(expanded) * len(parts) > MAX_BRACES:
            raise InputError(f"`{pattern[:100]}` expands to more than {MAX_BRACES} names")
        expanded = [name + part for name in expanded for part in parts]
    if text.count("{") != text.count("}"):
        raise InputError(f"`{pattern[:100]}` has an unmatched brace")
    return expanded


def _alternatives(inside: str, pattern: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(span[1]), int(span[2])
        if last - first > MAX_BRACES:
            raise InputError(f"`{pattern[:100]}` expands to more than {MAX_BRACES} names")
        width = len(span[1]) if len(span[1]) == len(span[2]) or span[1].startswith("0") else 0
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    return inside.split(",")
