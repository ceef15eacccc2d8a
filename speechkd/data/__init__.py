"""Corpora, shards, columns and the plan; `import speechkd.data` loads none of them until a name is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkd.data.cards import load_card
    from speechkd.data.columns import Column, ColumnSpec, ColumnWriter, Turn
    from speechkd.data.index import ShardSet, open_shards
    from speechkd.data.plan import ExampleRef, Plan, PlanConfig, PlanSource
    from speechkd.data.reader import Reader

_HOMES = {
    "load_card": "cards",
    "Column": "columns",
    "ColumnSpec": "columns",
    "ColumnWriter": "columns",
    "Turn": "columns",
    "ShardSet": "index",
    "open_shards": "index",
    "ExampleRef": "plan",
    "Plan": "plan",
    "PlanConfig": "plan",
    "PlanSource": "plan",
    "Reader": "reader",
}
__all__ = [
    "Column",
    "ColumnSpec",
    "ColumnWriter",
    "ExampleRef",
    "Plan",
    "PlanConfig",
    "PlanSource",
    "Reader",
    "ShardSet",
    "Turn",
    "load_card",
    "open_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
