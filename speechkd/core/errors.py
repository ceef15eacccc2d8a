"""Error types and exit codes, and one-line messages for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE = 1, 2, 75


class InputError(ValueError):
    """The user's input is wrong. The message is one line: what was given, what is allowed, the nearest valid name, and where."""


class DataError(ValueError):
    """Bytes on disk do not match their digest or format. The message names the file and member."""


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed name closest to `given`, or None if nothing is close."""
    matches = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.4)
    return matches[0] if matches else None


def unknown_name(kind: str, given: str, allowed: Iterable[str], where: str = "") -> str:
    """One line for an unknown name: ``unknown loss `topkl`; allowed: a, topk_kl; did you mean `topk_kl`? (recipe.yaml)``."""
    names = sorted(map(str, allowed))
    close = nearest(given, names)
    hint = f"; did you mean `{close}`?" if close else ""
    place = f" ({where})" if where else ""
    return f"unknown {kind} `{given}`; allowed: {', '.join(names) or 'none'}{hint}{place}"
