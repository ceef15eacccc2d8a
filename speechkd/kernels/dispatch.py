"""Chooses an op's implementation: by name, or the first that can run. Training logs each new choice once (`news`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from speechkd.core.errors import InputError, unknown_name

F = TypeVar("F", bound=Callable[..., object])

Obstacle = Callable[[Tensor, Tensor], str | None]
"""(hidden_TD, weight_VD) -> reason why an implementation cannot run on them, or None"""


class Choice(NamedTuple):
    """The chosen implementation and, for `auto`, why better ones cannot run."""

    name: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return self.name + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


_seen: set[tuple[str, str]] = set()
_news: list[tuple[str, Choice]] = []


def anything(hidden_TD: Tensor, weight_VD: Tensor) -> str | None:
    """For implementations that always run."""
    return None


def frozen_head(hidden_TD: Tensor, weight_VD: Tensor) -> str | None:
    """The chunked form cannot run if the head's weight needs a gradient."""
    return "the head's weight wants a gradient" if weight_VD.requires_grad and torch.is_grad_enabled() else None


def choose(op: str, impl: str, obstacles: Mapping[str, Obstacle], hidden_TD: Tensor, weight_VD: Tensor) -> Choice:
    """The implementation to run. `obstacles`: all implementations, best first.

    Raises InputError for an unknown name, and if the named implementation cannot run on these tensors.
    """
    if impl == "auto":
        reasons: list[str] = []
        for name, obstacle in obstacles.items():
            reason = obstacle(hidden_TD, weight_VD)
            if reason is None:
                return Choice(name, tuple(reasons))
            reasons.append(f"not {name}: {reason}")
        raise InputError(f"no implementation of `{op}` can run: {'; '.join(reasons)}")
    if impl not in obstacles:
        raise InputError(unknown_name(f"implementation of `{op}`", impl, ["auto", *obstacles]))
    reason = obstacles[impl](hidden_TD, weight_VD)
    if reason is not None:
        raise InputError(f"implementation `{impl}` of `{op}` cannot run: {reason}; allowed: auto, reference")
    return Choice(impl, ())


def pick(op: str, impl: str, table: Mapping[str, tuple[F, Obstacle]], hidden_TD: Tensor, weight_VD: Tensor) -> F:
    """The function that `choose` selects; records its first use for `news`. A new implementation is one line in `table`."""
    choice = choose(op, impl, {name: obstacle for name, (_, obstacle) in table.items()}, hidden_TD, weight_VD)
    if (op, choice.name) not in _seen:
        _seen.add((op, choice.name))
        _news.append((op, choice))
    return table[choice.name][0]


def news() -> list[tuple[str, Choice]]:
    """(op, choice) of every implementation first used since the last call."""
    choices = _news.copy()
    _news.clear()
    return choices
