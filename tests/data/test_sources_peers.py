"""Corpora written by lhotse, HF datasets, webdataset and in NeMo's layout become our shards, sample for sample."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.data.raw import fields, noise, same, samples, shards_of, write


def as_pcm(audio: Any) -> np.ndarray:
    """float [1, T] in -1..1, as lhotse loads it -> int16 [T]."""
    return np.rint(np.asarray(audio).reshape(-1) * 32768).astype(np.int16)


@pytest.fixture
def cuts(tmp_path: Path) -> Any:
    """Cuts of lhotse's own making: whole, parts, a second channel, two supervisions, an id that is no key."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    recordings = [Recording.from_file(write(tmp_path / "audio" / f"r{i}.flac", noise(i, 2.0 + i / 3, channels=2))) for i in range(3)]
    made = []
    for i, recording in enumerate(recordings):
        words = [(f"s{i}{j}", 0.5 * j, {"text": f"word {i}{j}", "speaker": f"p{j}", "language": "en"}) for j in (1, 0)]
        spoken = [SupervisionSegment(name, recording.id, start, 0.4, **attributes) for name, start, attributes in words]
        custom = {"snr": 3.5, "tags": [1]}
        made.append(MonoCut(f"whole-{i}", 0, recording.duration, 0, supervisions=spoken, recording=recording, custom=custom))
        attributes = SupervisionSegment(f"t{i}", recording.id, 0, 0.7, channel=1, text="part", gender="f", custom={"emotion": "sad"})
        made.append(MonoCut(f"part/{i}.x", 0.1234 + i / 7, 0.7311, 1, supervisions=[attributes], recording=recording))
    return CutSet.from_cuts(made)


def loaded(cuts: Any) -> dict[str, np.ndarray]:
    return {cut.id.replace("/", "_").replace(".", "_"): as_pcm(cut.load_audio()) for cut in cuts}


def check_fields(found: dict[str, dict[str, Any]]) -> None:
    assert found["whole-1"] == {"snr": 3.5, "language": "en", "text": "word 10 word 11", "n_speakers": 2}
    assert found["part_1_x"] == {"text": "part", "gender": "f", "emotion": "sad"}


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotse_cuts(name: str, cuts: Any, tmp_path: Path) -> None:
    cuts.to_file(tmp_path / name)
    shards = shards_of(tmp_path, {"kind": "lhotse", "cuts": name, "root": "audio"})
    same(samples(shards), loaded(cuts))
    check_fields(fields(shards))


def test_lhotse_shar(cuts: Any, tmp_path: Path) -> None:
    (tmp_path / "shar").mkdir()
    silent = replace(next(iter(cuts)), id="silent", recording=None)
    cuts.to_shar(str(tmp_path / "shar"), fields={"recording": "flac"}, shard_size=4)
    shards = shards_of(tmp_path, {"kind": "shar", "dir": "shar"})
    same(samples(shards), loaded(cuts))
    check_fields(fields(shards))
    (tmp_path / "two").mkdir()
    type(cuts).from_cuts([*cuts, silent]).to_shar(str(tmp_path / "two"), fields={"recording": "wav"}, shard_size=4)
    found = samples(shards_of(tmp_path, {"kind": "shar", "dir": {"dev": "two"}}, version="v2", text_only=True))
    assert found.pop("silent") is None
    same(found, loaded(cuts))


def test_lhotse_cuts_that_are_not_plain_audio_are_quarantined(cuts: Any, tmp_path: Path) -> None:
    cut = next(iter(cuts))
    odd = [cut.with_id("fast").perturb_speed(1.1), cut.with_id("padded").pad(9.0), cut.with_id("mixed").mix(cut, snr=3)]
    type(cuts).from_cuts([cut, *odd]).to_file(tmp_path / "cuts.jsonl")
    shards = shards_of(tmp_path, {"kind": "lhotse", "cuts": "cuts.jsonl", "root": "audio"})
    same(samples(shards), loaded([cut]))
    reasons = [json.loads(line)["reason"] for line in (shards.root / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(reason.split(";")[0].split(" that")[0] for reason in reasons) == ["has transforms", "is a MixedCut", "is a MixedCut"]


def nemo_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"audio_filepath": f"n{i}.wav", "duration": 1.0 + i / 4, "text": f"text {i}"} for i in range(4)]
    rows += [{"audio_filepath": f"n1-sub{j}.wav", "offset": 0.25 * j, "duration": 0.31, "text": f"part {j}"} for j in (1, 2)]
    return rows


def nemo_clips() -> dict[str, np.ndarray]:
    return {f"n{i}.wav": noise(50 + i, 1.0 + i / 4) for i in range(4)}


def nemo_expected() -> dict[str, np.ndarray]:
    clips = nemo_clips()
    whole = {name.removesuffix(".wav"): pcm for name, pcm in clips.items()}
    return whole | {f"n1-sub{j}": clips["n1.wav"][round(4000 * j) : round(4000 * j) + 4960] for j in (1, 2)}


def test_nemo_tarred_manifest_with_sharded_manifests(tmp_path: Path) -> None:
    """The layout of NeMo's convert_to_tarred_audio_dataset: audio_N.tar, manifest_N.json with shard_id, -subN for parts of one member."""
    clips, rows = nemo_clips(), nemo_rows()
    for shard in (0, 1):
        with tarfile.open(tmp_path / f"audio_{shard}.tar", "w") as tar:
            mine = [row for row in rows if int(row["audio_filepath"][1]) % 2 == shard]
            for name in sorted({f"{row['audio_filepath'][:2]}.wav" for row in mine}):
                buffer = io.BytesIO()
                soundfile.write(buffer, clips[name], 16_000, format="WAV", subtype="PCM_16")
                info = tarfile.TarInfo(name)
                info.size = len(buffer.getvalue())
                tar.addfile(info, io.BytesIO(buffer.getvalue()))
        (tmp_path / f"manifest_{shard}.json").write_text("".join(json.dumps({**row, "shard_id": shard}) + "\n" for row in mine))
    source = {"kind": "nemo", "manifest": "manifest__OP_0..1_CL_.json", "tars": "audio__OP_0..1_CL_.tar"}
    shards = shards_of(tmp_path, source, fields={"text": "transcript"})
    same(samples(shards), nemo_expected())
    assert fields(shards)["n1-sub2"] == {"transcript": "part 2", "duration": 0.31}
    both = "".join((tmp_path / f"manifest_{shard}.json").read_text() for shard in (0, 1))
    (tmp_path / "all.json").write_text(both)
    again = shards_of(tmp_path, {**source, "manifest": {"dev": "all.json"}, "tars": {"dev": "audio_{0,1}.tar"}}, version="v2")
    same(samples(again), nemo_expected())
    assert again.splits() == {"dev": 6}


def test_nemo_manifest_of_files(tmp_path: Path) -> None:
    for name, pcm in nemo_clips().items():
        write(tmp_path / "wavs" / name, pcm)
    rows = [{**row, "audio_filepath": f"/elsewhere/wavs/{row['audio_filepath'][:2]}.wav"} for row in nemo_rows()]
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = shards_of(tmp_path, {"kind": "nemo", "manifest": "m.json", "root": "wavs", "moved": {"/elsewhere/wavs": ""}})
    expected = nemo_expected()
    named = {f"n{i}": expected[f"n{i}"] for i in (0, 2, 3)}
    named |= {f"n1-00000{k}": expected[n] for k, n in enumerate(("n1", "n1-sub1", "n1-sub2"))}
    same(samples(shards), named)


def hf_rows(folder: Path) -> tuple[dict[str, list[Any]], dict[str, np.ndarray]]:
    """Five rows: FLAC and WAV bytes, one row by path alone."""
    clips = {f"{i:09d}": noise(80 + i, 0.5 + i / 8) for i in range(1, 6)}
    cells: list[dict[str, Any]] = []
    for i, pcm in enumerate(clips.values()):
        buffer = io.BytesIO()
        soundfile.write(buffer, pcm, 16_000, format="WAV" if i % 2 else "FLAC", subtype="PCM_16")
        cells.append({"bytes": buffer.getvalue(), "path": f"{i}.wav"})
    write(folder / "loose/4.wav", clips["000000005"])
    cells[4] = {"bytes": None, "path": "loose/4.wav"}
    columns = {"audio": cells, "text": [f"t{i}" for i in range(5)], "gender": [0, 1, 0, 1, -1], "age": [20.5, None, 3.0, 4.0, 5.0]}
    return {**columns, "more": [{"snr": i, "list": [i]} for i in range(5)]}, clips


@pytest.mark.parametrize("layout", ["dataset", "dict", "parquet"])
def test_hf_dataset(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Audio, ClassLabel, Dataset, DatasetDict

    monkeypatch.chdir(tmp_path)  # the library looks for the row that is a path
    rows, clips = hf_rows(tmp_path)
    dataset = Dataset.from_dict(rows).cast_column("audio", Audio(decode=False)).cast_column("gender", ClassLabel(names=["female", "male"]))
    expected, path = clips, "ds"
    if layout == "dataset":
        dataset.save_to_disk(tmp_path / "ds", num_shards=2)
    elif layout == "dict":
        DatasetDict(train=dataset, test=dataset.select([3, 4])).save_to_disk(tmp_path / "ds")
        expected = {f"train-{key}": pcm for key, pcm in clips.items()}
        expected |= {"test-000000001": clips["000000004"], "test-000000002": clips["000000005"]}
    else:
        (tmp_path / "ds").mkdir()
        dataset.select(range(3)).to_parquet(tmp_path / "ds/train-00000-of-00002.parquet", batch_size=2)
        dataset.select(range(3, 5)).to_parquet(tmp_path / "ds/train-00001-of-00002.parquet")
        path = "ds/train-*.parquet"
    shards = shards_of(tmp_path, {"kind": "hf_disk", "path": path})
    same(samples(shards), expected)
    found = fields(shards)[next(iter(expected))]
    assert found == {"text": "t0", "gender": "female", "age": 20.5, "more.snr": 0}
    assert "gender" not in fields(shards)[list(clips)[4] if layout != "dict" else "train-000000005"]


def test_hf_dataset_in_the_order_of_its_own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Audio, Dataset

    monkeypatch.chdir(tmp_path)
    rows, clips = hf_rows(tmp_path)
    dataset = Dataset.from_dict({**rows, "id": [f"k.{9 - i}" for i in range(5)]}).cast_column("audio", Audio(decode=False))
    dataset.to_parquet(tmp_path / "d.parquet", batch_size=1)
    source = {"kind": "hf_disk", "path": "d.parquet", "key_field": "id", "clean_keys": True, "columns": ["text"]}
    shards = shards_of(tmp_path, source)
    same(samples(shards), {f"k_{9 - i}": pcm for i, pcm in enumerate(clips.values())})
    assert fields(shards)["k_9"] == {"text": "t0"}


def test_webdataset(tmp_path: Path) -> None:
    import webdataset

    clips = {f"w{i}": noise(20 + i, 0.4 + i / 9) for i in range(5)}
    with webdataset.ShardWriter(str(tmp_path / "s-%02d.tar"), maxcount=3, verbose=0) as sink:
        for i, (key, pcm) in enumerate(clips.items()):
            buffer = io.BytesIO()
            soundfile.write(buffer, pcm, 16_000, format="FLAC", subtype="PCM_16")
            members = {"json": {"n": i, "deep": {"x": True}}, "txt": f" t{i}\n", "pyd": [i]}
            sink.write({"__key__": f"dir/{key}", "flac": buffer.getvalue(), **members})
    shards = shards_of(tmp_path, {"kind": "webdataset", "tars": "s-{00..01}.tar"})
    same(samples(shards), {f"dir_{key}": pcm for key, pcm in clips.items()})
    assert fields(shards)["dir_w3"] == {"n": 3, "deep.x": True, "text": "t3"}


def test_our_own_shards_are_a_source_too(tones_root: Path, tmp_path: Path) -> None:
    """What plain webdataset reads of ours, our webdataset source reads as well: the same samples, metadata and keys."""
    for path in (tones_root / "audio").glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shards = shards_of(tmp_path, {"kind": "webdataset", "tars": "*.tar"}, text_only=True)
    from speechkd.data.shards.index import open_shards

    ours = open_shards(tones_root)
    assert fields(shards) == fields(ours)
    got, expected = samples(shards), samples(ours)
    assert sorted(got) == sorted(expected) and all(np.array_equal(got[k], expected[k]) for k in got)  # type: ignore[arg-type]
