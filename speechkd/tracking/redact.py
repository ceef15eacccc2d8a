"""Flattens nested settings to texts for params and tags, and masks secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_SECRET = re.compile(  # whole words: `max_new_tokens` and `tokenizer` are not secrets
    r"(?<![a-z])(token|secrets?|passwords?|passwd|(api|access|private)_?keys?|credentials?|authorization)(?![a-z])"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def flat_texts(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted name -> text. Masks values under secret-like names, and credentials inside URLs."""
    out: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat_texts(value, f"{name}.")
        elif value is not None and _SECRET.search(_CAMEL.sub("_", name).lower()):
            out[name] = MASK
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            out[name] = _USERINFO.sub(f"{MASK}@", text)
    return out
