"""The shard stage on real files: bytes, partitions, kills, quarantine, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from speechkd.core.errors import InputError
from speechkd.data.audio.flac import decode_flac
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.stages.shard import shard
from tests.data.corpus import tone, write_card, write_tones


def contents(root: Path) -> dict[str, bytes]:
    """Every visible file of a version but its columns."""
    files = (p for p in root.rglob("*") if p.is_file() and "columns" not in p.parts and p.name[0] != ".")
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_samples_come_out_as_they_went_in(tones_root: Path, tones_card: Path) -> None:
    shards = open_shards(tones_root)
    samples = shards.samples()
    assert [sample.key for sample in samples] == [f"c{i:02d}" for i in range(9)] + ["text"]
    assert shards.splits() == {"test": 2, "train": 8} and len(shards.samples("test")) == 2
    assert samples[3].metadata == {"speaker": "organ0", "hertz": 320}
    assert samples[9].metadata == {"speaker": "none", "hertz": 0.5, "mute": True} and samples[9].seconds == 0
    reader = Reader(shards)
    for number, sample in enumerate(samples[:9]):
        audio_T = reader.audio(number)
        assert audio_T is not None and audio_T.dtype == np.float32
        assert audio_T.size == round(sample.seconds * 16_000) and abs(sample.seconds - (0.1 + 0.05 * number)) < 1e-3
        middle = slice(200, audio_T.size - 200)  # the resampler's window runs over both ends
        assert np.abs(audio_T - tone(sample.seconds, 16_000, 200 + 40 * number)[:, 0])[middle].max() < 2e-3
        assert dict(reader.metadata(number)) == dict(sample.metadata)
    assert reader.audio(9) is None
    table = pq.read_table(tones_root / "audio/000002.parquet")
    assert table["meta.hertz"].to_pylist() == [520.0, 0.5] and table["meta.mute"].to_pylist() == [None, True]


def test_a_tar_is_plain_ustar_that_others_read(tones_root: Path) -> None:
    import webdataset

    with tarfile.open(tones_root / "audio/000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"c0{i}.{suffix}" for i in range(4) for suffix in ("flac", "json")]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}
    raw = (tones_root / "audio/000000.tar").read_bytes()
    assert raw[257:265] == b"ustar\x0000"
    urls = [str(tones_root / f"audio/00000{i}.tar") for i in range(3)]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in open_shards(tones_root).samples()]
    assert decode_flac(read[1]["flac"], "x").size == 2400 and json.loads(read[1]["json"])["hertz"] == 240
    assert "flac" not in read[9]


def test_hf_datasets_reads_them_too(tones_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its webdataset builder, streaming; the features are said, since its own guess for audio needs a codec library of its own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Features, Value, load_dataset

    shards = open_shards(tones_root)
    text = {name: Value("string") for name in ("__key__", "__url__")}
    clip, attributes = Value("binary"), {"hertz": Value("float64"), "speaker": Value("string")}
    tars = [str(tones_root / f"audio/00000{number}.tar") for number in range(3)]
    features = Features({**text, "flac": clip, "json": attributes})
    read = list(load_dataset("webdataset", data_files={"train": tars}, split="train", streaming=True, features=features))
    assert [row["__key__"] for row in read] == [sample.key for sample in shards.samples()]
    reader = Reader(shards)
    for number, row in enumerate(read):
        audio_T = reader.audio(number)
        assert (row["flac"] is None) == (audio_T is None) and row["json"]["hertz"] == reader.metadata(number)["hertz"]
        assert audio_T is None or np.array_equal(decode_flac(row["flac"], "x"), audio_T)


def test_partitions_give_the_same_bytes_and_the_last_publishes(tones_card: Path, tones_root: Path, tmp_path: Path) -> None:
    root = shard(tones_card, tmp_path, partition=(1, 2), quiet=True)
    assert not (root / "manifest.json").exists() and sorted(p.name for p in (root / "receipts").iterdir()) == ["000001.json"]
    with pytest.raises(InputError, match="not published: 1 shards are written"):
        open_shards(root)
    shard(tones_card, tmp_path, partition=(0, 2), workers=1, quiet=True)
    assert contents(root) == contents(tones_root)


def test_a_version_is_counted_when_it_is_published_and_when_it_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = write_card(tmp_path, [*write_tones(tmp_path, 3), {"id": "x", "audio": "gone.wav"}], quarantine_rate=0.5)
    for _ in range(2):
        shard(card, tmp_path / "out", workers=1)
        attributes = capsys.readouterr().err.splitlines()
        assert attributes[-1] == "shard: tones/v1 is published: 3 samples, 1 of 4 items in quarantine"


def test_a_finished_version_is_left_alone_without_listing(tones_root: Path, tones_card: Path) -> None:
    (rows := tones_card.parent / "rows.jsonl").rename(hidden := tones_card.parent / "hidden")
    try:
        began = time.monotonic()
        assert shard(tones_card, tones_root.parents[1], quiet=True) == tones_root
        assert time.monotonic() - began < 0.5
    finally:
        hidden.rename(rows)


def test_a_published_version_of_another_card_is_refused(tones_root: Path, tmp_path: Path) -> None:
    card = write_card(tmp_path, write_tones(tmp_path), description="changed")
    with pytest.raises(InputError, match="published from another card: give this one a new version"):
        shard(card, tones_root.parents[1], quiet=True)


@pytest.mark.slow
def test_killed_in_the_middle_then_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    card = write_card(tmp_path, write_tones(tmp_path, 20), shard_samples=2)
    whole = contents(shard(card, tmp_path / "whole", quiet=True))
    code = "import sys; from pathlib import Path; from speechkd.stages.shard import shard; shard(Path(sys.argv[1]), Path(sys.argv[2]))"
    root = tmp_path / "killed/tones/v1"
    stage = subprocess.Popen([sys.executable, "-c", code, str(card), str(tmp_path / "killed")], cwd=Path(__file__).parents[2])
    while len(list((root / "receipts").glob("0*.json"))) < 3 and stage.poll() is None:
        time.sleep(0.002)
    os.kill(stage.pid, signal.SIGKILL)
    assert stage.wait() == -signal.SIGKILL
    assert not (root / "manifest.json").exists()
    (root / "audio" / ".000001.tar.left.tmp").write_bytes(b"half")
    before = {p: p.stat().st_mtime_ns for p in (root / "receipts").glob("0*.json")}
    assert contents(shard(card, tmp_path / "killed", quiet=True)) == whole
    assert all(p.stat().st_mtime_ns == was for p, was in before.items()), "finished shards were written again"
    assert not list(root.rglob(".*")), "temporary files stayed"


def test_changed_input_redoes_an_unpublished_shard(tmp_path: Path) -> None:
    rows = write_tones(tmp_path, 8)
    card = write_card(tmp_path, rows)
    shard(card, tmp_path / "out", partition=(0, 2), quiet=True)
    rows[0]["hertz"] = 1
    write_card(tmp_path, rows)
    root = shard(card, tmp_path / "out", quiet=True)
    assert open_shards(root).samples()[0].metadata["hertz"] == 1


def test_quarantine_accounts_for_every_item(tmp_path: Path) -> None:
    rows = write_tones(tmp_path, 10)
    clips = tmp_path / "clips"
    soundfile.write(clips / "long.wav", tone(3, 16_000, 100), 16_000)
    soundfile.write(clips / "short.wav", tone(0.01, 16_000, 100), 16_000)
    soundfile.write(clips / "many.wav", tone(1, 16_000, 100, 4), 16_000)
    soundfile.write(clips / "nan.wav", np.array([0.0, np.nan] * 8000, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(clips / "prime.wav", tone(1, 44_101, 100), 44_101)
    soundfile.write(clips / "adpcm.wav", tone(1, 16_000, 100), 16_000, subtype="IMA_ADPCM")
    (clips / "words.wav").write_text("these are no samples")
    (clips / "cut.flac").write_bytes((clips / "1.flac").read_bytes()[:600])
    (clips / "link.wav").symlink_to("/dev/zero")
    expected = {
        "long.wav": "longer than 2 s", "short.wav": "shorter than", "many.wav": "4 channels", "nan.wav": "NaN", "prime.wav": "44101 Hz",
        "adpcm.wav": "ADPCM", "words.wav": "neither FLAC nor WAV", "cut.flac": "",
        "link.wav": "link to outside", "gone.wav": "no such file",
        "../rows.jsonl": "below the root", "/etc/passwd": "below the root", "\ud800.wav": "",
    }  # fmt: skip
    bad = [{"id": f"x{i}", "audio": name} for i, name in enumerate(expected)]
    bad.append({"id": "words", "transcript": "\ud800"})
    limits = {"max_seconds": 2.0, "max_channels": 2}
    card = write_card(tmp_path, rows + bad, audio=limits, quarantine_rate=0.6)
    shards = open_shards(shard(card, tmp_path / "out", quiet=True))
    lines = [json.loads(line) for line in (shards.root / "quarantine.jsonl").read_text().splitlines()]
    assert shards.manifest["input"] == len(rows) + len(bad) == len(shards.samples()) + len(lines)
    reasons = {line["key"]: line["reason"] for line in lines}
    assert set(reasons) == {row["id"] for row in bad} and len(lines) == len(bad) == shards.manifest["quarantined"]
    for i, text in enumerate(expected.values()):
        assert text in reasons[f"x{i}"]
    assert lines[1]["source"]["kind"] == "jsonl" and list(shards.verify()) == []
    strict = write_card(tmp_path, rows + bad, audio=limits, version="v2")
    with pytest.raises(InputError, match="14 of 24 items were rejected, the card allows 5.0%"):
        shard(strict, tmp_path / "out", quiet=True)
    root = tmp_path / "out/tones/v2"
    assert len((root / "quarantine.jsonl").read_text().splitlines()) == 14 and not (root / "manifest.json").exists()


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "x" * 81, "ä", "-ok but space"])
def test_keys_that_cannot_name_a_member_are_refused(key: str, tmp_path: Path) -> None:
    card = write_card(tmp_path, [{"id": key, "part": "train"}], fields={})
    with pytest.raises(InputError, match="must be 1 to 80 of A-Z"):
        shard(card, tmp_path / "out", quiet=True)


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    rows = write_tones(tmp_path, 3)

    def says(text: str, rows: list[dict[str, object]] = rows, partition: tuple[int, int] = (0, 1), **changes: object) -> None:
        with pytest.raises(InputError, match=text) as caught:
            shard(write_card(tmp_path, rows, **changes), tmp_path / "out", partition=partition, quiet=True)
        assert "\n" not in str(caught.value)

    jsonl = {"kind": "jsonl", "file": "rows.jsonl", "root": "clips"}
    says("unknown source `jsnl`; allowed: csv, espeak, .*; did you mean `jsonl`", source={**jsonl, "kind": "jsnl"})
    says("no folder `.*away`: put the corpus's data there", source={**jsonl, "root": "away"})
    says("no file `.*none.jsonl`", source={**jsonl, "file": "none.jsonl"})
    says("unknown key `rot`.*did you mean `root`", source={**jsonl, "rot": "x"})
    says("key `kind` is missing", source={"file": "x"})
    says("unknown field `instrumnt`.*did you mean `instrument`", fields={"instrumnt": "speaker"})
    says("two fields for `hertz`", fields={"instrument": "hertz"})
    says("key `c00` is given twice", rows=[*rows, rows[0]])
    says("key `licence` is missing|at least 1 character", licence="")
    says("no items", rows=[])
    says("partition 2/2", partition=(2, 2))
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\n{"id": NaN}\n')
    with pytest.raises(InputError, match="NaN is not JSON.*line 2"):
        shard(tmp_path / "card.yaml", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.tar"))


def test_a_crash_in_a_block_fails_the_stage_with_its_reason(tmp_path: Path) -> None:
    from speechkd.data.shards.workers import write_shards

    setup = {"root": str(tmp_path), "card": {"name": "x"}, "card_dir": str(tmp_path)}
    with pytest.raises(RuntimeError, match="shard 0: ValidationError"):
        list(write_shards(setup, [{"shard": 0, "items": []}], 1))


def test_synthetic_speech_is_the_same_in_any_partition(tmp_path: Path) -> None:
    import yaml

    card = yaml.safe_load((Path(__file__).parents[2] / "shards/cards/minibabel.yaml").read_text())
    card["source"]["splits"] = {"train": {"clips": 36}, "test_known": {"clips": 6, "transcripts": "held_out"}}
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump({**card, "shard_samples": 15}))
    one = shard(path, tmp_path / "one", workers=1, quiet=True)
    for part in (1, 0):
        two = shard(path, tmp_path / "two", partition=(part, 2), quiet=True)
    assert contents(one) == contents(two) and len(open_shards(one).samples("train")) == 36
