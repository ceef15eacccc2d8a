"""Seeded damage to every kind of published file: `check` reports all of it, and reading never uses a damaged byte."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from speechkd.core.errors import DataError, InputError
from speechkd.data.reader import Example, Reader
from speechkd.data.shards.index import open_shards


def damage(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """One flipped bit, a cut, or a zeroed block, that changes the bytes."""
    while True:
        kind = draw.choice(["flip", "cut", "zero"])
        if kind == "flip":
            at = draw.randrange(len(data))
            changed = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        elif kind == "cut":
            changed = data[: draw.randrange(len(data))]
        else:
            at, size = draw.randrange(len(data)), draw.choice([1, 16, 512, 4096])
            changed = data[:at] + bytes(len(data[at : at + size])) + data[at + size :]
        if changed != data:
            return kind, changed


def reported(root: Path) -> list[str]:
    """What `check` says, as it would say it."""
    try:
        return list(open_shards(root).verify())
    except (DataError, InputError) as error:
        return [str(error)]


def everything(root: Path) -> list[Example]:
    """All that training reads."""
    shards = open_shards(root)
    reader = Reader(shards, shards.column("echo"))
    source = reader.source("kd", stops=("eos", "length", "error"))
    return [reader.read(source.row(number)) for number in range(len(source))]


def same(ours: list[Example], theirs: list[Example]) -> bool:
    return len(ours) == len(theirs) and all(repr(one) == repr(other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("cases", [100, pytest.param(1000, marks=pytest.mark.system)])
def test_every_damage_is_reported_and_none_is_used(cases: int, copied: Path) -> None:
    kinds = {"tar": "*.tar", "parquet": "*.parquet", "manifest": "manifest.json", "text": "*.[yj][as]*[lnl]"}
    files = {
        kind: [p for p in sorted(copied.rglob(glob)) if "receipts" not in p.parts and p.stat().st_size] for kind, glob in kinds.items()
    }
    whole = everything(copied)
    draw = random.Random(cases)
    counts: Counter[str] = Counter()
    for _ in range(cases):
        kind = draw.choice(sorted(files))
        path = draw.choice(files[kind])
        data = path.read_bytes()
        how, changed = damage(data, draw)
        path.write_bytes(changed)
        lines = reported(copied)
        assert any(path.name in line for line in lines), f"{how} in {path.relative_to(copied)} was not reported: {lines}"
        try:
            used = everything(copied)
        except (DataError, InputError):
            counts["stopped"] += 1
        else:
            counts["not read"] += 1
            assert same(used, whole), f"{how} in {path.relative_to(copied)} was used"
        path.write_bytes(data)
        counts[f"{kind} {how}"] += 1
    assert len(counts) == 4 * 3 + 2 and counts["stopped"] > cases // 4, counts
    assert reported(copied) == []
