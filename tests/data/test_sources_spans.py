"""Rows that are parts of recordings: read to the sample in every unit, and never silently the whole call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speechkd.core.errors import InputError
from speechkd.data.cards import list_corpus, load_card, open_source
from speechkd.data.sources.csv_table import TableFormat, read_table
from tests.data.raw import card_file, fields, noise, same, samples, shards_of, write

CALL = noise(1, 4, channels=2)
PARTS = {"a": (0, 0.5, 0), "b": (0.5, 1.25, 1), "c": (2.125, 4, 0), "d": (3.9, 4, 1)}
"""Key -> start, end and channel"""
EXPECTED = {key: CALL[round(start * 16_000) : round(end * 16_000), channel] for key, (start, end, channel) in PARTS.items()}


def clock(seconds: float) -> str:
    return f"{int(seconds) // 3600:02d}:{int(seconds) // 60 % 60:02d}:{seconds % 60:06.3f}"


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "seconds": (lambda s: f"{s:g}", {}),
    "clock": (clock, {}),
    "short clock with a comma": (lambda s: clock(s)[3:].replace(".", ","), {}),
    "milliseconds": (lambda s: str(round(s * 1000)), {"times": "milliseconds"}),
    "samples": (lambda s: str(round(s * 16_000)), {"times": "samples"}),
    "decimal comma": (lambda s: f"{s:g}".replace(".", ","), {"decimal": ",", "delimiter": ";"}),
}
KEYS: dict[str, Any] = {"root": "", "key_field": "id", "start_field": "from", "channel_field": "side"}


@pytest.mark.parametrize("ends", ["end", "duration"])
@pytest.mark.parametrize("form", FORMS)
def test_every_part_is_read_to_the_sample_in_every_form(form: str, ends: str, tmp_path: Path) -> None:
    write(tmp_path / "call.wav", CALL)
    written, keys = FORMS[form]
    last = {key: end if ends == "end" else end - start for key, (start, end, _) in PARTS.items()}
    rows = [[key, "call.wav", written(start), written(last[key]), "AB"[side], f"text {key}"] for key, (start, _, side) in PARTS.items()]
    mark = keys.get("delimiter", ",")
    quoted = [[f'"{cell}"' if mark in cell else cell for cell in row] for row in [["id", "audio", "from", "to", "side", "text"], *rows]]
    (tmp_path / "list.csv").write_text("\n".join(mark.join(row) for row in quoted) + "\n")
    shards = shards_of(tmp_path, {"kind": "csv", "file": "list.csv", **KEYS, f"{ends}_field": "to", **keys})
    same(samples(shards), EXPECTED)
    assert fields(shards) == {key: {"text": f"text {key}"} for key in PARTS}


@pytest.mark.parametrize("first", [0, 1])
def test_json_rows_and_dataset_columns_have_parts_too(first: int, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wav = write(tmp_path / "call.wav", CALL)
    rows = [{"id": key, "from": start, "to": end, "side": side + first} for key, (start, end, side) in PARTS.items()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "audio": "call.wav"}) + "\n" for row in rows))
    pq.write_table(
        pa.Table.from_pylist([{**row, "audio": {"bytes": wav.read_bytes(), "path": "x"}} for row in rows]), tmp_path / "d.parquet"
    )
    keys = {**KEYS, "end_field": "to"} | ({"first_channel": 1} if first else {})
    for kind, place in (("jsonl", {"file": "rows.jsonl"}), ("hf_disk", {"path": "d.parquet"})):
        same(samples(shards_of(tmp_path, {"kind": kind, **place, **keys}, version=kind.replace("_", "-"))), EXPECTED)


def test_a_row_whose_part_is_not_said_is_rejected_with_what_it_says(tmp_path: Path) -> None:
    write(tmp_path / "call.wav", CALL)
    bad = {"words": ("soon", "1", "A"), "none": ("", "1", "A"), "back": ("2", "1", "A"), "late": ("3", "9", "A"), "side": ("0", "1", "C")}
    bad |= {"comma": ("1,5", "2", "A"), "negative": ("-1", "1", "A"), "third": ("0", "1", "2")}
    lines = [f'{key},call.wav,"{start}",{end},{side}' for key, (start, end, side) in {"good": ("0", "1", "0"), **bad}.items()]
    (tmp_path / "list.csv").write_text("\n".join(["id,audio,from,to,side", *lines]) + "\n")
    shards = shards_of(tmp_path, {"kind": "csv", "file": "list.csv", **KEYS, "end_field": "to"})
    reasons = {line["key"]: line["reason"] for line in map(json.loads, (shards.root / "quarantine.jsonl").read_text().splitlines())}
    assert list(samples(shards)) == ["good"] and set(reasons) == set(bad)
    assert "field `from` must be seconds or hh:mm:ss.mmm with the decimal mark `.`, is `soon`" in reasons["words"]
    assert "is nothing" in reasons["none"] and "end after it begins" in reasons["back"] and "is not inside 4.000 s" in reasons["late"]
    assert "A, B, left or right, is `C`" in reasons["side"] and "is `1,5`" in reasons["comma"] and "has 2 channels" in reasons["third"]


def listing(folder: Path, text: str, **source: Any) -> list[str]:
    """What is to be looked at again in a list of parts of `call.wav`."""
    write(folder / "call.wav", CALL)
    (folder / "list.csv").write_text(text)
    path = card_file(folder, {"kind": "csv", "file": "list.csv", "root": "", "key_field": "id", **source})
    card = load_card(path)
    return [str(stray) for stray in list_corpus(card, open_source(card, folder), folder).unmatched]


def test_rows_that_are_the_whole_of_one_file_are_said(tmp_path: Path) -> None:
    assert listing(tmp_path, "id,audio,text\na,call.wav,x\nb,call.wav,y\nc,other.wav,z\n") == [
        "1 files serve 2 items, each as a whole, e.g. `call.wav`"
    ]


@pytest.mark.parametrize("name", ["start", "Start Time", "start_ms", "begin", "offset", "onset"])
def test_times_that_nobody_reads_are_refused_where_rows_share_a_file(name: str, tmp_path: Path) -> None:
    text = f"id,audio,{name}\na,call.wav,0\nb,call.wav,1\n"
    with pytest.raises(InputError, match=f"1 files serve 2 items, and field `{name}` says where each begins: `start_field: {name}`"):
        listing(tmp_path, text)
    assert listing(tmp_path, text, start_field="") == ["1 files serve 2 items, each as a whole, e.g. `call.wav`"]
    assert listing(tmp_path, text, start_field=name) == []


def test_channels_without_a_first_one_are_refused_until_the_card_says_how_they_count(tmp_path: Path) -> None:
    text = "id,audio,ch\na,call.wav,1\nb,call.wav,2\n"
    with pytest.raises(InputError, match="has the channels 1, 2: set `first_channel: 1` if they count from 1, or `first_channel: 0`"):
        listing(tmp_path, text, channel_field="ch")
    assert listing(tmp_path, text, channel_field="ch", first_channel=1) == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"end_field": "to"}, "`end_field` needs `start_field`"),
        ({"start_field": "from", "end_field": "to", "duration_field": "to"}, "either `end_field` or `duration_field`"),
        ({"start_field": "from", "times": "minutes"}, "unknown value `minutes`; allowed: milliseconds, samples, seconds"),
    ],
)
def test_keys_that_contradict_are_refused(source: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        listing(tmp_path, "id,audio,from,to\na,call.wav,0,1\n", **source)


def test_rows_without_audio_are_what_the_card_says(tmp_path: Path) -> None:
    write(tmp_path / "call.wav", CALL)
    (tmp_path / "list.csv").write_text("id,audio,text\na,call.wav,x\nb,,y\n")
    source = {"kind": "csv", "file": "list.csv", "root": "", "key_field": "id"}
    with pytest.raises(InputError, match="1 of 2 rows name no audio .*e.g. `b`: mend them, or set `text_only: true` .*`text_only: false`"):
        shards_of(tmp_path, source)
    kept = shards_of(tmp_path, source, text_only=True, version="kept")
    assert {key: clip is None for key, clip in samples(kept).items()} == {"a": False, "b": True}
    left = shards_of(tmp_path, source, text_only=False, version="left")
    assert list(samples(left)) == ["a"] and "names no audio" in (left.root / "quarantine.jsonl").read_text()


def test_an_empty_cell_of_a_dataset_is_no_text_unless_the_card_says_so(tmp_path: Path) -> None:
    """It is known when audio is read, and not before."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wav = write(tmp_path / "call.wav", CALL).read_bytes()
    pq.write_table(pa.table({"audio": [{"bytes": wav, "path": "x"}, None], "n": [1, 2]}), tmp_path / "d.parquet")
    source = {"kind": "hf_disk", "path": "d.parquet", "root": ""}
    left = shards_of(tmp_path, source)
    assert len(left) == 1 and "names no audio: `text_only: true`" in (left.root / "quarantine.jsonl").read_text()
    assert len(shards_of(tmp_path, source, text_only=True, version="kept")) == 2


@pytest.mark.parametrize("given", [r"C:\calls\a\1.wav", r"c:\Calls\a\1.wav", "C:/calls/a/1.wav", r"a\1.wav", "/mnt/x/a/1.wav"])
def test_paths_of_another_system_are_moved(given: str, tmp_path: Path) -> None:
    write(tmp_path / "audio/a/1.wav", noise(1, 0.2))
    moved = {"C:\\calls": ""} if ":" in given else {"/mnt/x": ""} if given.startswith("/") else {}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": given}) + "\n")
    source = {"kind": "jsonl", "file": "rows.jsonl", "root": "audio", "moved": moved}
    same(samples(shards_of(tmp_path, source, unmatched_rate=0.0)), {"000000001": noise(1, 0.2)})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("/mnt/x/2.wav", "no such file: `audio/b/2.wav`"),
        ("3.wav", "no such file: `audio/3.wav`"),
        ("3\n\udc80.wav", "no such file: `audio/3\ufffd\ufffd.wav`"),
        ("/mnt/y/1.wav", "path must stay below the root folder, is `/mnt/y/1.wav`: `moved` maps the beginning"),
        (r"D:\y\1.wav", r"path must stay below the root folder, is `audio/D:\y\1.wav`: `moved` maps"),
    ],
)
def test_the_reason_shows_the_path_that_was_tried(given: str, says: str, tmp_path: Path) -> None:
    write(tmp_path / "audio/b/1.wav", noise(1, 0.2))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"audio": name}) + "\n" for name in ("/mnt/x/1.wav", given)))
    source = {"kind": "jsonl", "file": "rows.jsonl", "root": "audio", "moved": {"/mnt/x": "b"}}
    assert says in json.loads((shards_of(tmp_path, source).root / "quarantine.jsonl").read_text())["reason"]


def test_keys_of_a_manifest_hold_no_absolute_path(tmp_path: Path) -> None:
    write(tmp_path / "audio/a/1.wav", noise(1, 0.2))
    names = [str(tmp_path / "audio/a/1.wav"), "/mnt/x/a/1.wav", "/elsewhere/2.wav"]
    keys = []
    for name in names:
        (tmp_path / "m.json").write_text(json.dumps({"audio_filepath": name}) + "\n")
        moved = {"/mnt/x": ""} if name.startswith("/mnt/x") else {}
        card = load_card(card_file(tmp_path, {"kind": "nemo", "manifest": "m.json", "root": "audio", "moved": moved}))
        keys += [item.key for item in list_corpus(card, open_source(card, tmp_path), tmp_path).items]
    assert keys == ["a_1", "a_1", "2"]


def test_one_dangling_segment_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path / "r1.wav", CALL[:, :1])
    for name, text in {"wav.scp": "r1 r1.wav\n", "segments": "u1 r1 0 1\nu2 gone 0 1\nu3 r1 1 2\n"}.items():
        (tmp_path / name).write_text(text)
    shards = shards_of(tmp_path, {"kind": "kaldi", "dir": ".", "root": ""})
    assert sorted(samples(shards)) == ["u1", "u3"]
    assert "its recording `gone` is not in wav.scp" in (shards.root / "quarantine.jsonl").read_text()


@pytest.mark.parametrize("style", [{"pattern": r"(?P<k>\w),(?P<n>.+)"}, {"columns": ["k", "n"]}, {}])
def test_a_wrong_cell_is_named_by_its_line_in_the_file(style: dict[str, Any], tmp_path: Path) -> None:
    head = "" if style else "k,n\n"
    (tmp_path / "t.csv").write_text("# one\n\n# three\n" + head + "a,1\n\nb,x\n")
    with pytest.raises(InputError, match=f"is `x`: .*line {6 if style else 7}"):
        list(read_table(tmp_path / "t.csv", TableFormat(skip_lines=3, numbers=["n"], **style)))


def test_numbers_with_a_decimal_comma(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("k;n\na;1,5\nb;-2\n")
    style = TableFormat(delimiter=";", decimal=",", numbers=["n"])
    assert [row["n"] for _, row in read_table(tmp_path / "t.csv", style)] == [1.5, -2]
