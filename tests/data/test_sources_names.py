"""Names that cleaning would make equal: every item keeps a key, an audio file and a text of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechkd.core.errors import InputError
from speechkd.data.storage.names import clean_name, is_name
from tests.data.test_sources_lists import listing, tar

ALIKE = ["早安", "晚安", "谢谢", "a b", "a_b", "a.b", "говорит", "молчали", "a" * 90 + "1", "a" * 90 + "2", "é", "e\u0301", "--", "__"]


def corpus(kind: str, names: list[str], folder: Path) -> dict[str, Any]:
    """Clips of these names, in whichever layout; the field `said` or `text` of each is its name."""
    (folder / "a").mkdir(parents=True)
    if kind == "folder":
        for name in names:
            (folder / f"a/{name}.wav").touch()
            (folder / f"a/{name}.json").write_text(json.dumps({"said": name}))
        return {"kind": "folder", "root": "a", "sidecars": ["json"]}
    if kind == "kaldi":
        ids = [name.replace(" ", ",") for name in names]
        (folder / "wav.scp").write_text("".join(f"{name} {i}.wav\n" for i, name in enumerate(ids)), encoding="utf-8")
        (folder / "text").write_text("".join(f"{name} {was}\n" for name, was in zip(ids, names)), encoding="utf-8")
        return {"kind": "kaldi", "dir": ".", "root": "a"}
    if kind == "lhotse":
        cuts = [{"id": name, "custom": {"said": name}} for name in names]
        (folder / "l.jsonl").write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
        return {"kind": "lhotse", "cuts": "l.jsonl", "root": "a"}
    rows = [{"audio": f"{name}.wav", "audio_filepath": f"{name}.wav", "id": name, "said": name} for name in names]
    if kind == "messages":
        rows = [{**row, "audio": "x.wav", "messages": [{"role": "user", "content": "x"}]} for row in rows]
    (folder / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if kind == "nemo":
        return {"kind": "nemo", "manifest": "l.jsonl", "root": "a"}
    return {"kind": kind, "file": "l.jsonl", "root": "a", "key_field": "id"} | ({"clean_keys": True} if kind == "jsonl" else {})


KINDS = ["folder", "kaldi", "lhotse", "nemo", "messages", "jsonl"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(ALIKE), min_size=2, max_size=8, unique=True))
def test_names_that_clean_to_the_same_key_stay_apart(kind: str, names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    items = listing(folder / "once", corpus(kind, names, folder / "once")).items
    said = {item.key: str(item.metadata.get("said") or item.metadata.get("text")) for item in items}
    assert sorted(said.values()) == sorted(names) and all(is_name(key) for key in said)
    alone = [name for name in names if [clean_name(n) for n in names].count(clean_name(name)) == 1]
    assert {clean_name(name) for name in alone if kind != "kaldi"} <= set(said), "a key that no other name has stays what it was"
    again = folder / "again"
    assert [item.key for item in listing(again, corpus(kind, names[::-1], again)).items] == sorted(
        said
    ), "the order of a list changes no key"


def test_a_name_that_needs_no_cleaning_keeps_it(tmp_path: Path) -> None:
    for name in ("spk1/utt_1", "spk1_utt/1"):
        (tmp_path / f"a/{name}.wav").parent.mkdir(parents=True)
        (tmp_path / f"a/{name}.wav").touch()
    source = {"kind": "folder", "root": "a"}
    assert all(item.key.startswith("spk1_utt_1-") for item in listing(tmp_path, source).items)
    rows = [{"id": name, "said": name} for name in ("a b", "a_b")]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = listing(tmp_path, {"kind": "jsonl", "file": "l.jsonl", "audio_field": "", "key_field": "id", "clean_keys": True}).items
    assert {item.metadata["said"]: item.key for item in items}["a_b"] == "a_b"
    (tmp_path / "t.csv").write_text("id,text\na b,one\na_b,two\n")
    table = {"file": "t.csv", "column": "id", "take": ["text"]}
    items = listing(
        tmp_path, {"kind": "jsonl", "file": "l.jsonl", "audio_field": "", "key_field": "id", "clean_keys": True}, joins=[table]
    ).items
    assert {item.metadata["said"]: item.metadata["text"] for item in items} == {"a b": "one", "a_b": "two"}


def test_the_same_name_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"id": "a", "audio": "x.wav"}\n{"id": "a", "audio": "y.wav"}\n')
    with pytest.raises(InputError, match="key `a` is given twice, by `x.wav` of split `train`, line 1 and `y.wav` .*line 2: .*`key_field`"):
        listing(tmp_path, {"kind": "jsonl", "file": "l.jsonl", "key_field": "id"})


@pytest.mark.parametrize(
    ("tars", "keys"), [(["s0.tar", "s1.tar"], ["s0-0", "s0-1", "s1-0"]), (["a/s.tar", "b/s.tar"], ["a_s-0", "a_s-1", "b_s-0"])]
)
def test_keys_that_restart_in_every_tar_have_the_tars_name(tars: list[str], keys: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(tars):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar(tmp_path / name, ["0.wav", "0.json", *["1.wav", "1.json"] * (number == 0)])
    items = listing(tmp_path, {"kind": "webdataset", "tars": f"{{{','.join(tars)}}}"}).items
    assert [item.key for item in items] == keys
    assert all(str(item.payload["tar"]).removesuffix(".tar").replace("/", "_") == item.key[:-2] for item in items)


def test_members_of_a_sample_are_found_anywhere_in_their_tar_and_only_there(tmp_path: Path) -> None:
    tar(tmp_path / "s0.tar", ["0.wav", "1.wav", "0.json", "1.json"])
    items = listing(tmp_path, {"kind": "webdataset", "tars": "s0.tar"}).items
    assert [(item.key, item.metadata) for item in items] == [("0", {"text": "x"}), ("1", {"text": "x"})]
    tar(tmp_path / "s0.tar", ["0.wav"])
    tar(tmp_path / "s1.tar", ["0.json"])
    with pytest.raises(InputError, match="`0` has its audio in `.*s0.tar` and its text in `.*s1.tar`"):
        listing(tmp_path, {"kind": "webdataset", "tars": "s{0,1}.tar"})
    tar(tmp_path / "s0.tar", ["0.wav", "0.wav"])
    with pytest.raises(InputError, match="`0.wav` is in `.*s0.tar` twice"):
        listing(tmp_path, {"kind": "webdataset", "tars": "s0.tar"})


def test_nemos_own_matching_is_honoured_where_it_is_unique(tmp_path: Path) -> None:
    """Rows name paths, members their last part; sharded manifests go with the tars of their number."""
    for shard in (0, 1):
        tar(tmp_path / f"audio_{shard}.tar", ["x.wav", f"y{shard}.flac"])
        rows = [{"audio_filepath": name, "said": f"{shard}"} for name in ("/d/x.wav", f"d/y{shard}.wav")]
        (tmp_path / f"m_{shard}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "nemo", "manifest": "m_{0,1}.json", "tars": "audio_{0,1}.tar"}
    found = listing(tmp_path, source)
    assert not found.unmatched and len(found.items) == 4
    assert all(item.payload["tar"] == f"audio_{item.metadata['said']}.tar" for item in found.items)
    (tmp_path / "m_1.json").write_text("".join(json.dumps({"audio_filepath": f"{way}/y1.wav"}) + "\n" for way in "ab"))
    problems = [item.payload.get("problem") for item in listing(tmp_path, source).items if "y1" in item.payload["audio"]]
    assert problems == ["no member `a/y1.wav` in the tars", "no member `b/y1.wav` in the tars"]
