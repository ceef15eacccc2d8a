"""Which implementation of an op runs: asked for by name, or the first that can. Training tells each choice once (`news`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch

from speechkd.core.errors import InputError, unknown_name
from speechkd.kernels.logits import Head

F = TypeVar("F", bound=Callable[..., object])

Obstacle = Callable[[object], str | None]
"""the op's first input -> why an implementation cannot run on it, or None"""


class Choice(NamedTuple):
    """A picked implementation and, for `auto`, what kept better ones out."""

    name: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return self.name + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


_seen: set[tuple[str, str]] = set()
_news: list[tuple[str, Choice]] = []


def anything(given: object) -> str | None:
    """No obstacle."""
    return None


def frozen_head(given: object) -> str | None:
    """Hidden gradients made in forward leave none for the head's weight, and need a head."""
    if not isinstance(given, Head):
        return "it is given logits, not a head"
    return "the head's weight wants a gradient" if given.weight_VD.requires_grad and torch.is_grad_enabled() else None


def choose(op: str, impl: str, obstacles: Mapping[str, Obstacle], given: object) -> Choice:
    """The implementation to run; `obstacles` lists what exists, best first.

    Raises InputError for an unknown name, and for a named one that cannot run on this input.
    """
    if impl == "auto":
        reasons: list[str] = []
        for name, obstacle in obstacles.items():
            reason = obstacle(given)
            if reason is None:
                return Choice(name, tuple(reasons))
            reasons.append(f"not {name}: {reason}")
        raise InputError(f"no implementation of `{op}` can run: {'; '.join(reasons)}")
    if impl not in obstacles:
        raise InputError(unknown_name(f"implementation of `{op}`", impl, ["auto", *obstacles]))
    reason = obstacles[impl](given)
    if reason is not None:
        raise InputError(f"implementation `{impl}` of `{op}` cannot run: {reason}; allowed: auto, reference")
    return Choice(impl, ())


def pick(op: str, impl: str, table: Mapping[str, tuple[F, Obstacle]], given: object) -> F:
    """The function of `choose`; the first time that an op runs in this form is news. A new form is one line in `table`."""
    choice = choose(op, impl, {name: obstacle for name, (_, obstacle) in table.items()}, given)
    if (op, choice.name) not in _seen:
        _seen.add((op, choice.name))
        _news.append((op, choice))
    return table[choice.name][0]


def news() -> list[tuple[str, Choice]]:
    """(op, choice) of every form that ran for the first time since the last call."""
    told = _news.copy()
    _news.clear()
    return told
