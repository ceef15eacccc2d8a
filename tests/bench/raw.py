"""Members of a shard's tar one after another, as loaders that stream tars read them; training reads samples by number instead."""

from __future__ import annotations

from collections.abc import Iterator

from speechkd.core.errors import DataError
from speechkd.data.shards.index import ShardSet, tar_path
from speechkd.data.storage.tar import member_problem


def members(shards: ShardSet, shard: int, checked: bool = True) -> Iterator[tuple[str, memoryview]]:
    """(name, bytes) of every member, in order, not copied. Raises DataError for one that differs from its digest."""
    for label, member in shards._listed(shard):
        data = shards.tars._map(tar_path(shard))
        problem = member_problem(data, member) if checked else None
        if problem:
            raise DataError(f"{shards.root / tar_path(shard)}: member `{label}` {problem}")
        yield label, data[member.offset : member.offset + member.size]
