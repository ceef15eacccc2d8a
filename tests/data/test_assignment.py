"""A corpus grows: unchanged shards are referenced, columns of them serve, and nothing old is written again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.data.column_writer import ColumnWriter
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.stages.shard import shard
from tests.data.corpus import ECHO, Rows, write_card, write_echo, write_tones


def texts(count: int, first: int = 0) -> Rows:
    """Text-only rows: quick to make."""
    return [{"id": f"k{number:04d}", "part": "train", "instrument": "voice", "hertz": number} for number in range(first, first + count)]


def facts(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """What would change if a file were written again, even with the same bytes."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.slow
def test_two_shards_added_to_fifty_rewrite_nothing(tmp_path: Path) -> None:
    old_rows = texts(100, 2)
    old = shard(write_card(tmp_path, old_rows, shard_samples=2), tmp_path / "out", quiet=True)
    write_echo(open_shards(old))
    before = facts(old)
    rows = [*texts(2), *old_rows, *texts(2, 200)]  # before and behind the old ones in the list
    new = shard(write_card(tmp_path, rows, shard_samples=2, version="v2", grows="v1"), tmp_path / "out", quiet=True)
    shards = open_shards(new)
    assert shards.shards == 52 and len(shards) == 104 and shards.manifest["input"] == 104
    assert sorted(path.name for path in (new / "audio").iterdir()) == [f"0000{n}.{s}" for n in (50, 51) for s in ("parquet", "tar")]
    writer = ColumnWriter(shards, ECHO)
    assert writer.missing() == [50, 51]
    column = write_echo(shards)
    assert sorted(path.name for path in column.root.glob("0*.tar")) == ["000050.tar", "000051.tar"]
    assert facts(old) == before
    reader = Reader(shards, column)
    read = {reader.read(row).key: reader.read(row).metadata["hertz"] for row in range(len(column))}
    assert read == {row["id"]: row["hertz"] for row in rows if row["id"] != shards.samples()[3].key}
    assert list(shards.verify()) == []
    third = shard(write_card(tmp_path, [*rows, *texts(1, 300)], shard_samples=2, version="v3", grows="v2"), tmp_path / "out", quiet=True)
    assert {entry["in"] for entry in open_shards(third).manifest["files"].values() if "in" in entry} == {"v1", "v2"}
    assert ColumnWriter(open_shards(third), ECHO).missing() == [52]
    (old / "audio/000007.tar").unlink()
    assert list(open_shards(third).verify()) == ["audio/000007.tar: is missing (in version v1)"]


def test_a_changed_or_removed_item_renews_its_shard_alone(tmp_path: Path) -> None:
    rows = write_tones(tmp_path, 12)
    rows.insert(2, {"id": "bad", "audio": "gone\u2028.wav"})  # JSON leaves this line end of Unicode as it is
    old = shard(write_card(tmp_path, rows, quarantine_rate=0.5), tmp_path / "out", quiet=True)
    write_echo(open_shards(old))
    rows = [row for row in rows if row["id"] != "c05"]
    rows[0]["hertz"] = 7
    new = shard(write_card(tmp_path, rows, quarantine_rate=0.5, version="v2", grows="v1"), tmp_path / "out", quiet=True)
    shards = open_shards(new)
    assert shards.manifest["input"] == 12 == len(shards) + shards.manifest["quarantined"] and len(shards) == 11
    written = {path.name for path in (new / "audio").glob("*.tar")}
    lines = [json.loads(line) for line in (new / "quarantine.jsonl").read_bytes().splitlines()]
    assert [line["key"] for line in lines] == ["bad"]
    home = {sample.key: sample.shard for sample in shards.samples()}
    was = {sample.key: sample.shard for sample in open_shards(old).samples()}
    assert home == {key: number for key, number in was.items() if key != "c05"}
    assert written == {f"{was[key]:06d}.tar" for key in ("bad", "c00", "c05") if key in was}
    assert ColumnWriter(shards, ECHO).missing() == sorted(int(name[:6]) for name in written)
    assert list(shards.verify()) == []


def test_growing_from_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    card = write_card(tmp_path, texts(3), version="v2", grows="v1")
    with pytest.raises(InputError, match="card `tones` grows version `v1`: no such folder"):
        shard(card, tmp_path / "out", quiet=True)
    with pytest.raises(InputError, match="version `v2` cannot grow from itself"):
        shard(write_card(tmp_path, texts(3), version="v2", grows="v2"), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
