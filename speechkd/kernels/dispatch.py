"""Chooses an op's implementation: by name, or the first that can run. Training logs each new choice once (`news`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from speechkd.core.errors import InputError, unknown_name
from speechkd.kernels import triton_launch
from speechkd.kernels.logits import Head

Obstacle = Callable[[object], str | None]
"""first input of the op -> reason why an implementation cannot run on it, or None"""


class Implementation(NamedTuple):
    """One line of an op's table, best first."""

    run: Callable[..., Any]
    obstacle: Obstacle
    """why it cannot run, also where it is asked for by name"""
    slower: Obstacle = lambda first_input: None
    """why `auto` passes it over although it can run: another one was measured to be faster at this size"""


class Choice(NamedTuple):
    """The chosen implementation and, for `auto`, why better ones cannot run."""

    name: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return self.name + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


_latest: dict[str, Choice] = {}
_seen: set[tuple[str, str]] = set()
_news: list[tuple[str, Choice]] = []


def no_obstacle(first_input: object) -> str | None:
    """For implementations that always run."""
    return None


def needs_head(first_input: object) -> str | None:
    """The chunked form makes logits itself, some rows at a time."""
    return None if isinstance(first_input, Head) else "it is given logits, not a head"


def needs_triton_head(first_input: object) -> str | None:
    """The chunked form with Triton's row kernels."""
    return needs_head(first_input) or triton_launch.obstacle(first_input.hidden_TD)  # type: ignore[attr-defined]


def choose(op: str, impl: str, table: Mapping[str, Implementation], first_input: object) -> Choice:
    """The implementation to run. `table`: all implementations, best first.

    Raises InputError for an unknown name, and if the named implementation cannot run on this input.
    """
    if impl == "auto":
        reasons: list[str] = []
        for name, candidate in table.items():
            reason = candidate.obstacle(first_input) or candidate.slower(first_input)
            if reason is None:
                return Choice(name, tuple(reasons))
            reasons.append(f"not {name}: {reason}")
        raise InputError(f"no implementation of `{op}` can run: {'; '.join(reasons)}")
    if impl not in table:
        raise InputError(unknown_name(f"implementation of `{op}`", impl, ["auto", *table]))
    reason = table[impl].obstacle(first_input)
    if reason is not None:
        raise InputError(f"implementation `{impl}` of `{op}` cannot run: {reason}; allowed: auto, reference")
    return Choice(impl, ())


def pick(op: str, impl: str, table: Mapping[str, Implementation], first_input: object) -> Callable[..., Any]:
    """The function that `choose` selects; records its first use for `news`. A new implementation is one line in `table`."""
    choice = choose(op, impl, table, first_input)
    _latest[op] = choice
    if (op, choice.name) not in _seen:
        _seen.add((op, choice.name))
        _news.append((op, choice))
    return table[choice.name].run


def latest(op: str) -> Choice:
    """What the op's last call in this process ran. Raises KeyError if it has not been called."""
    return _latest[op]


def news() -> list[tuple[str, Choice]]:
    """(op, choice) of every implementation first used since the last call."""
    choices = _news.copy()
    _news.clear()
    return choices
