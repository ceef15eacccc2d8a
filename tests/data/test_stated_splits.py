"""Splits that names of files and folders, and metadata, state: taken, or the card is refused until it names them; never all in train."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechkd.core.errors import InputError
from speechkd.data.cards import list_items, load_card, open_source
from speechkd.data.sources.stated import stated_split
from tests.data.raw import card_file, noise, write

TALK = [{"role": "user", "content": "<audio>q"}, {"role": "assistant", "content": "a"}]


def splits_of(folder: Path, source: dict[str, Any], **changes: Any) -> dict[str, int]:
    card = load_card(card_file(folder, source, **changes))
    out: dict[str, int] = {}
    for item in list_items(card, open_source(card, folder), folder):
        out[item.split] = out.get(item.split, 0) + 1
    return out


def table(path: Path, rows: int = 1, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"audio": [{"bytes": b"x", "path": "x.wav"}] * rows, "text": ["t"] * rows, **columns}), path)


@pytest.mark.parametrize(
    ("path", "split"),
    {
        "data/train-00000-of-00001.parquet": "train",
        "data/test_other-00003-of-00014-0123456789abcdef.parquet": "test_other",
        "data/accents-00000-of-00002.parquet": "accents",
        "data/data-00000-of-00001.parquet": "",
        "part-00000-of-00001.parquet": "",
        "en/validation-00000-of-00001.parquet": "validation",
        "default/test/0000.parquet": "test",
        "clean/test.other/0000.parquet": "test.other",
        "corpus_dev.jsonl": "dev",
        "common_voice-eval-00000-of-00001.parquet": "eval",
        "M_cuts_TEST.jsonl.gz": "test",
        "test/shard-000001.tar": "test",
        "latest.csv": "",
        "contest.tsv": "",
        "trainer/list.csv": "",
        "testament_reading/list.csv": "",
        "test_corpora/mine/list.csv": "",
    }.items(),
)
def test_names_that_state_a_split(path: str, split: str) -> None:
    assert stated_split(PurePosixPath(path)) == split


HUBS = {
    "data/{}-00000-of-00001.parquet": ["train", "validation", "test"],
    "{}.parquet": ["train", "val", "test"],
    "en/corpus_{}.parquet": ["training", "dev", "eval"],
    "default/{}/0000.parquet": ["train", "test-clean", "test-other"],
    "data/{}-00000-of-00001-0123abcd.parquet": ["train", "gold", "silver"],
}


@pytest.mark.parametrize(("pattern", "names"), HUBS.items())
@pytest.mark.parametrize("how", ["folder", "glob", "one name", "one name for a glob", "named"])
def test_a_clone_of_a_hub_dataset(pattern: str, names: list[str], how: str, tmp_path: Path) -> None:
    for rows, name in enumerate(names, 1):
        table(tmp_path / "hub" / pattern.format(name), rows)
    source: dict[str, Any] = {"kind": "hf_disk", "path": "hub" if how in ("folder", "one name") else "hub/**/*.parquet"}
    if how in ("one name", "one name for a glob"):
        with pytest.raises(InputError, match=f"holds the splits .*is called `train`: name each, as source.path: .*{names[2]}: PATH"):
            splits_of(tmp_path, {**source, "path": {"train": source["path"]}})
        with pytest.raises(InputError, match="name each, as source.path"):
            splits_of(tmp_path, {**source, "split": "train"})
    elif how == "named":
        both = f"hub/{pattern}".replace("{}", f"{{{names[0]},{names[1]}}}")
        assert splits_of(tmp_path, {"kind": "hf_disk", "path": {"mine": both}}) == {"mine": 3}
    else:
        assert splits_of(tmp_path, source) == {names[0]: 1, names[1]: 2, names[2]: 3}


def test_a_split_whose_name_cannot_be_one_is_refused_with_what_to_write(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"audio": ["a.wav"], "text": ["t"]})
    datasets.DatasetDict({"train.clean.100": rows, "test.other": rows}).save_to_disk(tmp_path / "ls")
    table(tmp_path / "hub/data/train.clean.100-00000-of-00001.parquet")
    for path in ("ls", "hub"):
        with pytest.raises(InputError, match=r"split `train.clean.100` of .* as source.path: \{train_clean_100: PATH") as caught:
            splits_of(tmp_path, {"kind": "hf_disk", "path": path})
        assert "\n" not in str(caught.value)
    assert splits_of(tmp_path, {"kind": "hf_disk", "path": {"a": "ls/train.clean.100", "b": "ls/test.other"}}) == {"a": 1, "b": 1}


def test_a_saved_split_and_the_configs_of_a_readme(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"audio": ["a.wav"], "text": ["t"]}, split="test")
    rows.save_to_disk(tmp_path / "saved")
    assert splits_of(tmp_path, {"kind": "hf_disk", "path": "saved"}) == {"test": 1}
    assert splits_of(tmp_path, {"kind": "hf_disk", "path": "saved", "split": "mine"}) == {"mine": 1}
    for name in "ab":
        table(tmp_path / f"hub/files/{name}.parquet")
    configs = "configs:\n- config_name: x\n  data_files:\n  - {split: train, path: files/a.*}\n  - {split: test, path: [files/b.parquet]}"
    (tmp_path / "hub/README.md").write_text(f"---\nlicense: cc0-1.0\n{configs}\n---\n# About\n")
    assert splits_of(tmp_path, {"kind": "hf_disk", "path": "hub"}) == {"test": 1, "train": 1}
    table(tmp_path / "hub/files/c.parquet")
    with pytest.raises(InputError, match="c.parquet` states no split, others of `hub` do"):
        splits_of(tmp_path, {"kind": "hf_disk", "path": "hub"})


def listed(kind: str, folder: Path, split: str) -> dict[str, Any]:
    """A corpus of one item whose file or folder is called after `split`."""
    folder.mkdir(exist_ok=True)
    write(folder / "a/r.wav", noise(1, 0.1))
    cut = {"id": "c", "start": 0, "duration": 0.1, "channel": 0, "recording": {"sources": []}}
    if kind == "csv":
        (folder / f"{split}.csv").write_text("audio,text\nr.wav,t\n")
        return {"kind": kind, "file": f"{split}.csv", "root": "a"}
    if kind == "jsonl":
        (folder / f"my-{split}.jsonl").write_text(json.dumps({"audio": "r.wav", "text": "t"}) + "\n")
        return {"kind": kind, "file": f"my-{split}.jsonl", "root": "a"}
    if kind == "messages":
        (folder / f"{split}.json").write_text(json.dumps([{"messages": TALK, "audios": ["r.wav"]}]))
        return {"kind": kind, "file": f"{split}.json", "root": "a"}
    if kind == "nemo":
        (folder / f"{split}_manifest.json").write_text(json.dumps({"audio_filepath": "r.wav", "duration": 0.1}) + "\n")
        return {"kind": kind, "manifest": f"{split}_manifest.json", "root": "a"}
    if kind == "lhotse":
        (folder / f"cuts_{split}.jsonl").write_text(json.dumps(cut) + "\n")
        return {"kind": kind, "cuts": "cuts_*.jsonl", "root": "a"}
    if kind == "kaldi":
        (folder / split).mkdir()
        (folder / f"{split}/wav.scp").write_text("u r.wav\n")
        return {"kind": kind, "dir": split, "root": "a"}
    if kind == "folder":
        write(folder / f"b/{split}/r.wav", noise(1, 0.1))
        return {"kind": kind, "root": "b"}
    (folder / split).mkdir()
    with tarfile.open(folder / f"{split}/recording.000000.tar", "w") as tar:
        info = tarfile.TarInfo("c.wav")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"noise"))
    (folder / f"{split}/cuts.000000.jsonl.gz").write_bytes(gzip.compress((json.dumps(cut) + "\n").encode()))
    return {"kind": "shar", "dir": split} if kind == "shar" else {"kind": "webdataset", "tars": "*/recording.*.tar"}


LAYOUTS = ["csv", "jsonl", "messages", "nemo", "lhotse", "kaldi", "folder", "shar", "webdataset"]


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("split", ["test", "dev", "train"])
def test_every_layout_takes_what_its_names_state(kind: str, split: str, tmp_path: Path) -> None:
    source = listed(kind, tmp_path, split)
    assert splits_of(tmp_path, source) == {split: 1}
    assert splits_of(tmp_path, {**source, "split": "mine"}) == {"mine": 1}, "the card's own word goes first"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "hf_disk", "nemo", "webdataset", "folder"])
@pytest.mark.parametrize("values", [["train", "test"], ["TRAIN", "dev", "test-other"], ["train_clean", "validation"]])
def test_a_field_that_states_splits_is_not_passed_over(kind: str, values: list[str], tmp_path: Path) -> None:
    rows = [{"audio": "r.wav", "audio_filepath": "r.wav", "file_name": f"r{n}.wav", "subset": value} for n, value in enumerate(values)]
    for n in range(len(rows)):
        write(tmp_path / f"a/r{n}.wav", noise(n, 0.1))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "l.jsonl").write_text(lines)
    (tmp_path / "a/l.jsonl").write_text(lines)
    (tmp_path / "l.csv").write_text("audio,subset\n" + "".join(f"r.wav,{value}\n" for value in values))
    table(tmp_path / "l.parquet", len(rows), subset=values)
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        for row in rows:
            for name, data in ((row["file_name"], b"x"), (row["file_name"].replace("wav", "json"), json.dumps(row).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    source: dict[str, Any] = {
        "csv": {"file": "l.csv", "root": "a"},
        "jsonl": {"file": "l.jsonl", "root": "a"},
        "hf_disk": {"path": "l.parquet"},
        "nemo": {"manifest": "l.jsonl", "root": "a"},
        "webdataset": {"tars": "l.tar"},
        "folder": {"root": "a", "metadata": "l.jsonl"},
    }[kind] | {"kind": kind}
    with pytest.raises(InputError, match=rf"field `subset` states splits \(.*{values[1]} 1.*all items are in `train`.*`split: train` says"):
        splits_of(tmp_path, source)
    assert splits_of(tmp_path, {**source, "split": "train"}) == {"train": len(values)}
    if kind in ("csv", "jsonl", "hf_disk", "folder"):
        assert splits_of(tmp_path, {**source, "split_field": "subset"}) == dict.fromkeys(values, 1)


def test_a_field_called_part_with_other_values_is_metadata(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("text,part\na,noun\nb,train\n")
    assert splits_of(tmp_path, {"kind": "csv", "file": "l.csv", "audio_field": ""}) == {"train": 2}
