"""Chooses an op's implementation: by name, or the first that can run. Training logs each new choice once (`news`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from speechkd.core.errors import InputError, unknown_name
from speechkd.kernels import triton_launch
from speechkd.kernels.logits import Head

F = TypeVar("F", bound=Callable[..., object])

Obstacle = Callable[[object], str | None]
"""first input of the op -> reason why an implementation cannot run on it, or None"""


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


def choose(op: str, impl: str, obstacles: Mapping[str, Obstacle], first_input: object) -> Choice:
    """The implementation to run. `obstacles`: all implementations, best first.

    Raises InputError for an unknown name, and if the named implementation cannot run on this input.
    """
    if impl == "auto":
        reasons: list[str] = []
        for name, obstacle in obstacles.items():
            reason = obstacle(first_input)
            if reason is None:
                return Choice(name, tuple(reasons))
            reasons.append(f"not {name}: {reason}")
        raise InputError(f"no implementation of `{op}` can run: {'; '.join(reasons)}")
    if impl not in obstacles:
        raise InputError(unknown_name(f"implementation of `{op}`", impl, ["auto", *obstacles]))
    reason = obstacles[impl](first_input)
    if reason is not None:
        raise InputError(f"implementation `{impl}` of `{op}` cannot run: {reason}; allowed: auto, reference")
    return Choice(impl, ())


def pick(op: str, impl: str, table: Mapping[str, tuple[F, Obstacle]], first_input: object) -> F:
    """The function that `choose` selects; records its first use for `news`. A new implementation is one line in `table`."""
    choice = choose(op, impl, {name: obstacle for name, (_, obstacle) in table.items()}, first_input)
    _latest[op] = choice
    if (op, choice.name) not in _seen:
        _seen.add((op, choice.name))
        _news.append((op, choice))
    return table[choice.name][0]


def latest(op: str) -> Choice:
    """What the op's last call in this process ran. Raises KeyError if it has not been called."""
    return _latest[op]


def news() -> list[tuple[str, Choice]]:
    """(op, choice) of every implementation first used since the last call."""
    choices = _news.copy()
    _news.clear()
    return choices
