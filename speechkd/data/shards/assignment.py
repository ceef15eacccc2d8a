"""Assigns items to shards, and decides which shards of an earlier version can be reused.

A card that `grows` an earlier version keeps its assignment: old items stay in their shard, new items fill new shards after the last. A
shard is reused if its items (key, split, metadata, source entry) and audio limits are unchanged; if an item was changed or removed, the
shard is written again under its old number. So growing a corpus rewrites nothing, and columns of the earlier version are valid for every
reused shard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from speechkd.core.errors import InputError
from speechkd.data.cards import Card, split_into_shards
from speechkd.data.shards.index import ShardSet, open_shards
from speechkd.data.sources.base import Item
from speechkd.data.storage.arrays import numbers, texts
from speechkd.data.storage.files import Files
from speechkd.data.storage.manifest import loose_digest, read_parquet, shard_name
from speechkd.data.storage.store import Location

ITEMS, QUARANTINE = "items.parquet", "quarantine.jsonl"
LIST_POSITIONS = ("line", "number", "file", "row")
"""Payload keys that state an item's position in a list; they change when the list grows"""
ITEM_SCHEMA = pa.schema([("key", pa.string()), ("shard", pa.int32())])
"""items.parquet: every item of the input, stored or rejected, in shard and key order"""


@dataclass(frozen=True, slots=True)
class ShardItems:
    """The items of one shard."""

    items: list[Item]
    digest: str
    reused: dict[str, Any] | None = None
    """if an earlier version's shard is reused: its `files` (each with `in`) and the counts of its receipt"""


def items_digest(card: Card, items: Sequence[Item]) -> str:
    """sha256 of a shard's inputs; independent of the items' positions in the source's list."""
    rows = [
        {**item.plain(), "payload": {name: value for name, value in item.payload.items() if name not in LIST_POSITIONS}} for item in items
    ]
    return loose_digest({"source": card.source.get("kind"), "audio": card.audio.model_dump(mode="json"), "items": rows})


def assign_shards(card: Card, items: Sequence[Item], dataset: Location) -> list[ShardItems]:
    """Assign items, sorted by key, to shards. `dataset`: folder of all versions. Raises InputError if the version to grow is missing."""
    if not card.grows:
        return [ShardItems(group, items_digest(card, group)) for group in split_into_shards(items, card.shard_samples)]
    earlier = _earlier_version(dataset, card)
    table = read_parquet(earlier.files, ITEMS)
    shard_of = dict(zip(table["key"].to_pylist(), table["shard"].to_pylist(), strict=True))
    old: list[list[Item]] = [[] for _ in range(earlier.shards)]
    new: list[Item] = []
    for item in items:
        (old[shard_of[item.key]] if item.key in shard_of else new).append(item)
    out = []
    rejected = _rejected(earlier.files)
    for shard, group in enumerate(old):
        group_digest = items_digest(card, group)
        unchanged = earlier.manifest["shards"][shard]["items"] == group_digest
        reused = _reference(earlier, shard, len(group), rejected.get(shard, [])) if unchanged else None
        out.append(ShardItems(group, group_digest, reused))
    return out + [ShardItems(group, items_digest(card, group)) for group in split_into_shards(new, card.shard_samples)]


def _earlier_version(dataset: Location, card: Card) -> ShardSet:
    assert card.grows is not None
    try:
        return open_shards(dataset / card.grows)
    except InputError as error:
        raise InputError(f"card `{card.name}` grows version `{card.grows}`: {error}") from None


def item_table(planned: Sequence[ShardItems]) -> pa.Table:
    """items.parquet of a version."""
    keys = [item.key for shard_items in planned for item in shard_items.items]
    shards = [shard for shard, shard_items in enumerate(planned) for _ in shard_items.items]
    return pa.Table.from_arrays([texts(keys), numbers(shards)], schema=ITEM_SCHEMA)


def _reference(earlier: ShardSet, shard: int, items: int, rejected: list[dict[str, Any]]) -> dict[str, Any]:
    names = [f"audio/{shard_name(shard)}.{suffix}" for suffix in ("tar", "parquet")]
    entry = earlier.manifest["shards"][shard]
    facts = {name: value for name, value in entry.items() if name not in ("shard", "bytes", "items")}
    return {"files": referenced(earlier.files, names, earlier.version), **facts, "inputs": items - len(rejected), "quarantined": rejected}


def referenced(files: Files, names: Sequence[str], version: str) -> dict[str, dict[str, Any]]:
    """File entries for a later version: `in` names the version that stores the bytes."""
    return {name: {"in": version, **files.entries[name]} for name in names}


def _rejected(files: Files) -> dict[int, list[dict[str, Any]]]:
    out: dict[int, list[dict[str, Any]]] = {}
    for line in files.read(QUARANTINE).splitlines():  # split bytes: str.splitlines would also split at U+2028, which JSON does not escape
        entry = json.loads(line)
        out.setdefault(entry["shard"], []).append(entry)
    return out
