"""Every key of every list given every JSON type: a line that names it, a quarantine entry, or an item; never another exception."""

from __future__ import annotations

import copy
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechkd.core.errors import DataError, InputError
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.cards import Card, list_items, open_source
from speechkd.data.sources.guarded import read_guarded
from tests.data.raw import noise, write

VALUES: list[Any] = [
    None, True, 5, -1, 1.5, 10**400, 1e300, "", "x", "1.5", "\ud83d", "é" * 300, [], [1], ["x"], [None], [[]], {}, {"path": "r.wav"},
    {"path": 5}, {"array": [0.1], "sampling_rate": 16000}, [{"x": 1}], [{"path": "r.wav"}], {"a": {"b": [1]}},
]  # fmt: skip
SUPERVISION = {"start": 0.0, "text": "hi", "speaker": "a", "gender": "F", "language": "en", "custom": {"x": 1}}
RECORDING = {"sources": [{"type": "file", "channels": [0], "source": "r.wav"}], "transforms": []}
CUT = {"id": "c", "start": 0.0, "duration": 0.1, "channel": 0, "type": "MonoCut", "custom": {"snr": 3}}
CUT |= {"supervisions": [SUPERVISION, SUPERVISION], "recording": RECORDING}
NEMO = {"audio_filepath": "r.wav", "offset": 0.0, "duration": 0.1, "text": "hi", "shard_id": 0}
TALK = [{"role": "user", "content": "<audio>q"}, {"role": "assistant", "content": "a"}]
MESSAGES = {"messages": TALK, "audios": ["r.wav"], "id": "x"}
ONE = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "audio": "r.wav", "system": "s"}
JSONL = {"id": "k", "audio": "r.wav", "text": "hi", "part": "train", "answers": {"text": ["a", "b"]}, "file_name": "r.wav"}
BRACES = {"audio_field": "{audio}", "key_field": "{id}-{text}", "split_field": "{part}", "clean_keys": True}
NAMED = {"key_field": "id", "split_field": "part", "first_of": ["answers.text"]}
VOICE = {"engine": "command", "argv": ["true", "{text}", "{wav}"]}


def line(path: Path, row: Any) -> None:
    path.write_text(json.dumps(row) + "\n")


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def in_tar(folder: Path, row: Any) -> None:
    tar(folder / "t_0.tar", {"r.wav": b"x", "r.json": json.dumps(row).encode()})


def beside_tar(folder: Path, row: Any) -> None:
    line(folder / "l.jsonl", row)
    if not (folder / "t_0.tar").exists():
        tar(folder / "t_0.tar", {"r.wav": b"x"})


def shar(folder: Path, row: Any) -> None:
    (folder / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    if not (folder / "recording.000000.tar").exists():
        tar(folder / "recording.000000.tar", {"c.wav": b"x"})


def saved(folder: Path, row: Any) -> None:
    (folder / "ds").mkdir(exist_ok=True)
    line(folder / "ds/state.json", row)
    table = pa.table({"text": ["a"]})
    with pa.OSFile(str(folder / "ds/d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def features(folder: Path, row: Any) -> None:
    table = pa.table({"text": ["a"], "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(row)}), folder / "d.parquet")


Write = Callable[[Path, Any], None]
LABEL = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}, "text": {"_type": "Value"}}}}


def to_list(folder: Path, row: Any) -> None:
    line(folder / "l.jsonl", row)


def table_in_root(folder: Path, row: Any) -> None:
    line(folder / "a/l.jsonl", row)


def table_beside_sidecars(folder: Path, row: Any) -> None:
    line(folder / "a/l.jsonl", row)
    line(folder / "a/r.json", {"mood": "x"})
    (folder / "a/r.txt").write_text("spoken")


def sidecar(folder: Path, row: Any) -> None:
    line(folder / "a/r.json", row)


LAYOUTS: dict[str, tuple[Any, Write, dict[str, Any]]] = {
    "lhotse": (CUT, to_list, {"kind": "lhotse", "cuts": "l.jsonl", "root": "a"}),
    "shar": (CUT, shar, {"kind": "shar", "dir": "."}),
    "nemo": (NEMO, to_list, {"kind": "nemo", "manifest": "l.jsonl", "root": "a"}),
    "nemo at home": (NEMO, to_list, {"kind": "nemo", "manifest": "l.jsonl"}),
    "nemo keys": (NEMO, to_list, {"kind": "nemo", "manifest": "l.jsonl", "root": "a", "key_field": "text"}),
    "nemo tar": (NEMO, beside_tar, {"kind": "nemo", "manifest": "l.jsonl", "tars": "t_0.tar"}),
    "messages": (MESSAGES, to_list, {"kind": "messages", "file": "l.jsonl", "root": "a", "key_field": "id"}),
    "conversations": (ONE, to_list, {"kind": "messages", "file": "l.jsonl", "root": "a"}),
    "jsonl": (JSONL, to_list, {"kind": "jsonl", "file": "l.jsonl", "root": "a", **NAMED}),
    "jsonl braces": (JSONL, to_list, {"kind": "jsonl", "file": "l.jsonl", "root": "a", **BRACES}),
    "folder table": (
        JSONL,
        table_in_root,
        {"kind": "folder", "root": "a", "metadata": "l.jsonl", "key_field": "id", "split_field": "part"},
    ),
    "folder both": (JSONL, table_beside_sidecars, {"kind": "folder", "root": "a", "metadata": "l.jsonl", "sidecars": ["json", "txt"]}),
    "folder sidecar": (JSONL, sidecar, {"kind": "folder", "root": "a", "sidecars": ["json"], "key_field": "id", "split_field": "part"}),
    "webdataset": (JSONL, in_tar, {"kind": "webdataset", "tars": "t_0.tar"}),
    "tts": (JSONL, to_list, {"kind": "tts", "rows": {"kind": "jsonl", "file": "l.jsonl", **NAMED}, "text_field": "text", "voice": VOICE}),
    "saved": ({"_data_files": [{"filename": "d.arrow"}], "_split": "test"}, saved, {"kind": "hf_disk", "path": "ds", "audio_field": ""}),
    "features": (LABEL, features, {"kind": "hf_disk", "path": "d.parquet", "audio_field": ""}),
}


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, the whole of it first."""
    yield at
    for name, inside in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(inside, (*at, name))


def changed(base: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    out = node = copy.deepcopy(base)
    for name in at[:-1]:
        node = node[name]
    node[at[-1]] = value
    return out


def outcome(source: dict[str, Any], folder: Path) -> str:
    """What became of a corpus of one row. Any other exception is passed on."""
    card = Card(name="raw", version="v1", licence="x", source=source)
    try:
        opened = open_source(card, folder)
        items = list_items(card, opened, folder)
        for item in items:
            json.dumps(item.plain())
        clips = [] if source["kind"] == "tts" else list(read_guarded(opened, items))
    except (InputError, DataError) as error:
        said = str(error)
        assert "\n" not in said and "a list of this corpus cannot be read" not in said, said
        return "refused"
    for clip in clips:
        assert clip is None or isinstance(clip, (RawClip, Rejected))
        assert not isinstance(clip, Rejected) or "Error" not in clip.reason, clip.reason
    return "read"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_with_every_type(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPEECHKD_DATA", raising=False)
    write(tmp_path / "a/r.wav", noise(1, 0.2))
    base, put, source = LAYOUTS[layout]
    put(tmp_path, base)
    assert outcome(source, tmp_path) == "read", "the row itself is good"
    for at in places(base):
        for value in VALUES:
            put(tmp_path, changed(base, at, value))
            try:
                outcome(source, tmp_path)
            except Exception as error:
                raise AssertionError(f"{layout}: {'.'.join(map(str, at))} = {str(value)[:40]}: {error!r}") from error


COLUMNS: list[pa.Array] = [
    pa.array([[1]]), pa.array([{"a": 1}]), pa.array([b"x"]), pa.array([True]), pa.array([1.5]), pa.array([None]),
    pa.array([{"bytes": b"x"}]),
    pa.array([{"array": [0.1], "sampling_rate": 16000}]), pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), pa.array([{"path": 5}]),
    pa.array([0], pa.timestamp("s")), pa.array([1], pa.decimal128(5)), pa.array([[{"path": "r.wav"}]]), pa.array([{"path": "r.wav"}]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(COLUMNS)))
@pytest.mark.parametrize("name", ["audio", "id", "part", "text", "answers"])
def test_every_column_of_every_type(name: str, number: int, tmp_path: Path) -> None:
    write(tmp_path / "a/r.wav", noise(1, 0.2))
    plain = {"audio": ["r.wav"], "id": ["k"], "part": ["train"], "text": ["t"], "answers": [{"text": ["a"]}]}
    pq.write_table(pa.table({**plain, name: COLUMNS[number]}), tmp_path / "d.parquet")
    assert outcome({"kind": "hf_disk", "path": "d.parquet", "root": "a", **NAMED}, tmp_path) in ("read", "refused")


def test_a_table_opens_no_sidecar_outside_its_folder(tmp_path: Path) -> None:
    source = LAYOUTS["folder both"][2]
    write(tmp_path / "a/r.wav", noise(1, 0.2))
    (tmp_path / "b.txt").write_text("of another")
    names = ("r.wav", "../b.wav", str(tmp_path / "b.wav"))
    (tmp_path / "a/l.jsonl").write_text("".join(json.dumps({"file_name": name}) + "\n" for name in names))
    (tmp_path / "a/r.txt").write_text("spoken")
    card = Card(name="raw", version="v1", licence="x", source=source, unmatched_rate=1.0)
    assert [item.metadata.get("text") for item in list_items(card, open_source(card, tmp_path), tmp_path)].count("spoken") == 1
    assert not any(item.metadata.get("text") == "of another" for item in list_items(card, open_source(card, tmp_path), tmp_path))


def test_keys_of_half_characters_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text("".join(json.dumps({"id": name, "text": "t"}) + "\n" for name in ("\ud83d", "\ud83e", "\udc80")))
    source = {"kind": "jsonl", "file": "l.jsonl", "audio_field": "", "key_field": "id", "clean_keys": True}
    card = Card(name="raw", version="v1", licence="x", source=source)
    assert len({item.key for item in list_items(card, open_source(card, tmp_path), tmp_path)}) == 3


def test_what_no_reader_foresaw_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechkd.data.sources.jsonl import JsonlSource

    line(tmp_path / "l.jsonl", {"text": "t"})
    monkeypatch.setattr(JsonlSource, "items", lambda self: [][1])
    card = Card(name="raw", version="v1", licence="x", source={"kind": "jsonl", "file": "l.jsonl", "audio_field": ""})
    with pytest.raises(InputError, match="a list of this corpus cannot be read, IndexError: list index out of range .*kind jsonl"):
        list_items(card, open_source(card, tmp_path), tmp_path)
