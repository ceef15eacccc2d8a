"""`speechkd shard` on a version that lost files or bytes: it is made whole from the raw data, byte by byte as it was, or not touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.data.shards.index import open_shards
from speechkd.stages.check import check
from speechkd.stages.shard import shard
from tests.data.corpus import write_card, write_tones

DERIVED = ("index.parquet", "items.parquet", "card.yaml", "quarantine.jsonl")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder with `card.yaml`, and its shards below `out`; one of its ten items is in quarantine."""
    folder = tmp_path_factory.mktemp("repair")
    rows = write_tones(folder)
    (folder / "clips" / rows[4]["audio"]).write_bytes(b"no audio")
    shard(write_card(folder, rows, quarantine_rate=0.2), folder / "out", quiet=True)
    return folder


@pytest.fixture
def corpus(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "corpus"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_lost_file_is_made_again_by_the_same_command(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = corpus / "out/tones/v1"
    before = contents(root)
    (root / "audio/000001.tar").unlink()
    (root / "index.parquet").write_bytes(b"cut")
    assert check(root) == 1
    assert f"repair: `speechkd shard CARD --out {corpus}/out --repair`, with the card of tones/v1" in capsys.readouterr().out
    shard(corpus / "card.yaml", corpus / "out", quiet=True)
    assert contents(root) == before and check(root) == 0
    assert "audio/000001.tar: is missing; it is made again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["audio/000000.tar", "audio/000002.parquet", *DERIVED, "manifest.json"])
def test_a_flipped_byte_is_found_and_mended_on_request(corpus: Path, name: str) -> None:
    root = corpus / "out/tones/v1"
    before = contents(root)
    flip(root / name)
    if name != "manifest.json":
        shard(corpus / "card.yaml", corpus / "out", quiet=True)
        assert contents(root) != before, "sizes alone do not show it"
    shard(corpus / "card.yaml", corpus / "out", quiet=True, repair=True)
    assert contents(root) == before


def test_what_is_published_again_is_what_was_written(corpus: Path) -> None:
    """Without its manifest a version is published again, but never with a byte that flipped meanwhile."""
    root = corpus / "out/tones/v1"
    before = contents(root)
    flip(root / "audio/000000.tar")
    (root / "manifest.json").unlink()
    shard(corpus / "card.yaml", corpus / "out", quiet=True)
    assert contents(root) == before and list(open_shards(root).verify()) == []


def test_partitions_repair_their_shards_and_one_call_ends_it(corpus: Path) -> None:
    root = corpus / "out/tones/v1"
    before = contents(root)
    for name in ("audio/000000.tar", "audio/000001.tar", "index.parquet", "quarantine.jsonl", "receipts/000002.json"):
        (root / name).unlink()
    for part in (0, 1):
        shard(corpus / "card.yaml", corpus / "out", (part, 2), quiet=True)
    shard(corpus / "card.yaml", corpus / "out", quiet=True)
    assert contents(root) == before


def test_changed_raw_data_repair_nothing_and_change_nothing(corpus: Path) -> None:
    root = corpus / "out/tones/v1"
    (root / "audio/000000.tar").unlink()
    damaged = contents(root)
    clips = sorted((corpus / "clips").glob("*.flac"))
    shutil.copy(clips[1], clips[0])
    with pytest.raises(InputError, match="000000.tar` cannot be made again: its bytes would differ.*publish a new version"):
        shard(corpus / "card.yaml", corpus / "out", quiet=True)
    lines = (corpus / "rows.jsonl").read_text().splitlines(keepends=True)
    (corpus / "rows.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="was published from other raw data: 1 of its 3 shards.*`grows`"):
        shard(corpus / "card.yaml", corpus / "out", quiet=True)
    assert contents(root) == damaged


def test_a_version_that_refers_to_a_damaged_one_says_which(corpus: Path, tmp_path: Path) -> None:
    grown = write_card(corpus, write_tones(corpus), version="v2", grows="v1", quarantine_rate=0.2)
    (corpus / "clips/4.wav").write_bytes(b"no audio")
    root = shard(grown, corpus / "out", quiet=True)
    flip(corpus / "out/tones/v1/audio/000000.tar")
    with pytest.raises(InputError, match="only refers to it: repair `.*/tones/v1` first"):
        shard(grown, corpus / "out", quiet=True, repair=True)
    (Path(str(root)) / "manifest.json").unlink()
    with pytest.raises(InputError, match="repair that version first"):
        shard(grown, corpus / "out", quiet=True)
