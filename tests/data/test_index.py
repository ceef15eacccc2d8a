"""Opening, and finding every damaged byte."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import write_json
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.data.storage.manifest import with_self_digest
from tests.bench.raw import members


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def test_whole_shards_verify(tones_root: Path) -> None:
    assert list(open_shards(tones_root).verify()) == []
    assert open_shards(tones_root).card.name == "tones" and open_shards(tones_root).column_names() == ["echo"]


def test_every_flipped_bit_is_reported(copied: Path) -> None:
    files = [p for p in sorted(copied.rglob("*")) if p.is_file() and "receipts" not in p.parts]
    draw = random.Random(1)
    for path in files:
        whole = path.read_bytes()
        if not whole:
            continue
        for _ in range(8):
            flip(path, draw.randrange(len(whole)), draw.randrange(8))
            try:
                assert any(path.name in line for line in open_shards(copied).verify()), path
            except (DataError, InputError) as error:
                assert path.name == "manifest.json" and path.name in str(error)
            path.write_bytes(whole)
    assert list(open_shards(copied).verify()) == []


def test_a_bad_member_is_named_by_check_and_by_the_reader(copied: Path) -> None:
    shards = open_shards(copied)
    row = shards.table.slice(5, 1).to_pylist()[0]
    flip(copied / "audio/000001.tar", row["audio_offset"] + row["audio_bytes"] // 2)
    lines = list(shards.verify())
    assert lines == [f"audio/000001.tar: {part}bytes differ from their sha256" for part in ("", "member `c05.flac` ")]
    reader = Reader(open_shards(copied), open_shards(copied).column("echo"))
    with pytest.raises(DataError, match="audio/000001.tar: member `c05.flac` bytes differ"):
        reader.audio(5)
    assert reader.audio(4) is not None


def test_cut_missing_and_added_files_are_reported(copied: Path) -> None:
    (copied / "audio/000000.tar").write_bytes((copied / "audio/000000.tar").read_bytes()[:3000])
    (copied / "audio/000002.tar").unlink()
    (copied / "audio/000009.tar").write_bytes(b"")
    lines = list(open_shards(copied).verify())
    assert any("000000.tar: has 3000 bytes" in line for line in lines)
    assert any("000000.tar: member `c03.json` ends at byte" in line for line in lines)
    assert "audio/000002.tar: is missing" in lines and "audio/000009.tar: is not in the manifest" in lines
    with pytest.raises(DataError, match="000002.tar: cannot be read"):
        Reader(open_shards(copied)).audio(8)


def test_a_column_that_lost_its_manifest_is_reported_and_one_in_the_making_is_not(copied: Path) -> None:
    (copied / "columns/echo/manifest.json").unlink()
    lines = list(open_shards(copied).verify())
    assert len(lines) == 1 and lines[0].startswith("columns/echo: holds index.parquet and no manifest.json: it was removed")
    (copied / "columns/echo/index.parquet").unlink()
    assert list(open_shards(copied).verify()) == []


def test_a_damaged_index_is_never_used(copied: Path) -> None:
    flip(copied / "index.parquet", 700)
    flip(copied / "audio/000001.parquet", 700)
    with pytest.raises(DataError, match="copy/index.parquet: bytes differ"):
        open_shards(copied).samples("train")
    with pytest.raises(DataError, match="audio/000001.parquet: bytes differ"):
        open_shards(copied).samples(shard=1)
    with pytest.raises(DataError, match="audio/000001.parquet: bytes differ"):
        Reader(open_shards(copied)).audio(5)
    assert Reader(open_shards(copied)).audio(1) is not None, "what other shards hold is not concerned"


def test_members_come_as_they_lie_and_bad_ones_are_named(copied: Path) -> None:
    with tarfile.open(copied / "audio/000001.tar") as tar:
        whole = [(entry.name, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
    shards = open_shards(copied)
    assert [(name, bytes(data)) for name, data in members(shards, 1)] == whole
    row = shards.table.slice(5, 1).to_pylist()[0]
    flip(copied / "audio/000001.tar", row["audio_offset"])
    with pytest.raises(DataError, match="audio/000001.tar: member `c05.flac` bytes differ"):
        Reader(open_shards(copied)).audio(5)


def test_samples_of_a_split_or_a_shard(tones_root: Path) -> None:
    shards = open_shards(tones_root)
    whole = shards.samples()
    assert [sample.row for sample in whole] == list(range(10)) and whole[3].metadata["hertz"] == 320
    assert [sample.digest for sample in whole] == [value.hex() for value in shards.table["sha256"].to_pylist()]
    assert shards.samples("test") == [sample for sample in whole if sample.split == "test"]
    assert shards.samples("test", shard=1) == [sample for sample in whole if sample.split == "test" and sample.shard == 1]
    assert shards.samples(shard=2) == [sample for sample in whole if sample.shard == 2]
    assert shards.keys(1) == [sample.key for sample in whole if sample.shard == 1]


def test_opening_nothing_says_what_is_there(tones_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_shards(tmp_path / "nothing")
    with pytest.raises(InputError, match="published below it: .*tones/v1"):
        open_shards(tones_root.parents[1])
    (tmp_path / "x.txt").touch()
    with pytest.raises(InputError, match="holds no manifest.json; it has x.txt"):
        open_shards(tmp_path)
    with pytest.raises(InputError, match="unknown split `tset`.*did you mean `test`"):
        open_shards(tones_root).samples("tset")
    with pytest.raises(InputError, match="unknown column `eco`.*did you mean `echo`"):
        open_shards(tones_root).column("eco")


@pytest.mark.parametrize(
    "change, text", [({"format": "speechkd-shards/9"}, "reads `speechkd-shards/1`"), ({"files": {"../x": {}}}, "not below")]
)
def test_other_formats_and_hostile_manifests_are_refused(copied: Path, change: dict[str, object], text: str) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["sha256"]
    write_json(copied / "manifest.json", with_self_digest({**manifest, **change}))
    with pytest.raises(ValueError, match=text):
        open_shards(copied)


def test_pickles_small_and_import_is_light(tones_root: Path) -> None:
    shards = open_shards(tones_root)
    reader = Reader(shards, shards.column("echo"))
    first = reader.read(0)
    again = pickle.loads(pickle.dumps(reader))
    assert again.read(0).tokens == first.tokens and len(pickle.dumps(reader)) < 20_000
    code = "import sys, speechkd.data; assert not {'numpy', 'torch', 'pyarrow', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
