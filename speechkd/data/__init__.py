"""Corpora, shards, teacher columns and the training plan. Submodules are imported when one of their names is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkd.data.cards import load_card
    from speechkd.data.column_writer import ColumnWriter
    from speechkd.data.columns.column import Column
    from speechkd.data.columns.spec import ColumnSpec, Turn
    from speechkd.data.plan.plan import ExampleRef, Plan, PlanConfig, PlanSource
    from speechkd.data.reader import Reader
    from speechkd.data.shards.index import ShardSet, open_shards

_HOMES = {
    "load_card": "cards",
    "Column": "columns.column",
    "ColumnSpec": "columns.spec",
    "ColumnWriter": "column_writer",
    "Turn": "columns.spec",
    "ShardSet": "shards.index",
    "open_shards": "shards.index",
    "ExampleRef": "plan.plan",
    "Plan": "plan.plan",
    "PlanConfig": "plan.plan",
    "PlanSource": "plan.plan",
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
