"""Joins text tables to items: transcripts, speaker attributes and other metadata in files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.text import composed
from speechkd.core.types import Scalar
from speechkd.data.sources import paths
from speechkd.data.sources.base import Item, Unmatched, unmatched
from speechkd.data.sources.csv_table import TableFormat, read_table
from speechkd.data.storage.names import without_suffix


class Join(TableFormat):
    """One or more text tables below the data root. Each item gets the fields of the row whose `column` equals the item's `on`."""

    file: str
    """path, may contain * and braces"""
    column: str
    on: str = "key"
    """a raw field of the items; `key` is the item's key"""
    take: list[str] = Field(min_length=1)
    """columns that become raw fields of the items"""
    required: bool = True
    """true: an item without a row is an error; false: it just lacks the fields"""
    unused_rate: float = Field(default=1.0, ge=0, le=1)
    """largest share of the rows that may belong to no item; a list of speakers may serve a larger corpus"""

    @model_serializer(mode="wrap")
    def _without_later_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys added later are left out when unset, so that a card's digest stays what it was."""
        later = {name: type(self).model_fields[name].default for name in ("encoding", "multiline", "unused_rate", "decimal")}
        return {name: value for name, value in write(self).items() if name not in later or value != later[name]}


def join(items: Sequence[Item], joins: Sequence[Join], data_root: Path) -> tuple[list[Item], list[Unmatched]]:
    """The items with the joined fields added, and what items and tables do not know of each other. Raises InputError, MissingData."""
    strays: list[Unmatched] = []
    for table in joins:
        rows = _rows(table, data_root)
        if table.on != "key" and not any(table.on in item.metadata for item in items):
            fields = ["key", *{name: None for item in items for name in item.metadata}]
            raise InputError(unknown_name("field", table.on, fields, "card: joins.on"))
        joined = [_add(item, table, rows) for item in items]
        if not any(after is not before for after, before in zip(joined, items, strict=True)):
            row_value, item_value = next(iter(rows), ""), items[0].key if table.on == "key" else items[0].metadata.get(table.on)
            raise InputError(
                f"no item matches a row of `{table.file}`: "
                f"`{table.on}` is like `{item_value}`, column `{table.column}` like `{row_value}` (card: joins)"
            )
        values = {item.key: _value(item, table, rows) for item in items}
        idle = sorted(set(rows) - set(values.values()))
        if len(idle) > table.unused_rate * len(rows):
            raise InputError(
                f"{len(idle)} of {len(rows)} rows of `{table.file}` belong to no item, e.g. `{idle[0][:80]}`; "
                f"allowed {table.unused_rate:.1%} (card: joins.unused_rate)"
            )
        strays += unmatched(f"rows of `{table.file}` belong to no item", idle, len(rows), lookup=True)
        strays += unmatched(f"items have no row in `{table.file}`", [key for key, v in values.items() if v not in rows], len(items))
        items = joined
    return list(items), strays


def _value(item: Item, table: Join, rows: Mapping[str, Any]) -> str:
    """The value of the item's row. A table may call an item by its key or, as corpora do, by its own name."""
    if table.on != "key":
        return composed(str(item.metadata.get(table.on)))
    return next((name for name in map(composed, (item.key, item.name, without_suffix(item.name))) if name in rows), item.key)


def _rows(table: Join, data_root: Path) -> dict[str, dict[str, Scalar]]:
    out: dict[str, dict[str, Scalar]] = {}
    for path in paths.files(data_root, table.file, "joins.file"):
        for number, row in read_table(path, table):
            for name in (table.column, *table.take):
                if name not in row:
                    raise InputError(unknown_name("column", name, row, f"{path}, line {number}; card: joins"))
            value = composed(str(row[table.column]))
            if value in out:
                raise InputError(
                    f"`{value}` occurs twice in column `{table.column}`: remove a row, or join on another column "
                    f"({path}, line {number}; card: joins.column)"
                )
            out[value] = {name: row[name] for name in table.take if row[name] != ""}
    return out


def _add(item: Item, table: Join, rows: dict[str, dict[str, Scalar]]) -> Item:
    value = item.key if table.on == "key" else item.metadata.get(table.on)
    row = rows.get(_value(item, table, rows))
    if row is None:
        if not table.required:
            return item
        if value is None:
            raise InputError(unknown_name("field", table.on, item.metadata, "card: joins.on"))
        raise InputError(
            f"`{value}` of item `{item.key}` is not in `{table.file}`, column `{table.column}` (card: joins; `required: false` allows it)"
        )
    if twice := next((name for name in row if name in item.metadata), None):
        raise InputError(f"items already have a field `{twice}`, which `{table.file}` would replace (card: joins.take)")
    return replace(item, metadata={**item.metadata, **row})
