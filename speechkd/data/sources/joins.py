"""Joins text tables to items: transcripts, speaker attributes and other metadata in files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.types import Scalar
from speechkd.data.sources import paths
from speechkd.data.sources.base import Item
from speechkd.data.sources.csv_table import TableFormat, read_table


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


def join(items: Sequence[Item], joins: Sequence[Join], data_root: Path) -> list[Item]:
    """The items with the joined fields added. Raises InputError naming the table, MissingData."""
    for table in joins:
        rows = _rows(table, data_root)
        joined = [_add(item, table, rows) for item in items]
        if not any(after is not before for after, before in zip(joined, items, strict=True)):
            row_value, item_value = next(iter(rows), ""), items[0].key if table.on == "key" else items[0].metadata.get(table.on)
            raise InputError(
                f"no item matches a row of `{table.file}`: "
                f"`{table.on}` is like `{item_value}`, column `{table.column}` like `{row_value}` (card: joins)"
            )
        items = joined
    return list(items)


def _rows(table: Join, data_root: Path) -> dict[str, dict[str, Scalar]]:
    out: dict[str, dict[str, Scalar]] = {}
    for path in paths.files(data_root, table.file, "joins.file"):
        for number, row in read_table(path, table):
            for name in (table.column, *table.take):
                if name not in row:
                    raise InputError(unknown_name("column", name, row, f"{path}, line {number}; card: joins"))
            value = str(row[table.column])
            if value in out:
                raise InputError(f"`{value}` occurs twice in column `{table.column}` ({path}, line {number})")
            out[value] = {name: row[name] for name in table.take if row[name] != ""}
    return out


def _add(item: Item, table: Join, rows: dict[str, dict[str, Scalar]]) -> Item:
    value = item.key if table.on == "key" else item.metadata.get(table.on)
    row = rows.get(str(value))
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
