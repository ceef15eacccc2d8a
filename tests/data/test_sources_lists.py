"""Lists of a corpus: every text stays with its clip in any encoding, quotation or name, and what two lists do not share is counted."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speechkd.core.errors import InputError
from speechkd.data.cards import Listing, list_corpus, load_card, open_source
from speechkd.data.sources.csv_table import TableFormat, read_table
from tests.data.raw import card_file

CLIPS = 4
Put = Callable[[str, str], None]


def listing(folder: Path, source: dict[str, Any], **changes: Any) -> Listing:
    path = card_file(folder, source, **changes)
    card = load_card(path)
    return list_corpus(card, open_source(card, folder), folder)


def said(number: int) -> str:
    return f"número {number} – ünd “{number}”"


def corpus(kind: str, put: Put, folder: Path) -> dict[str, Any]:
    """A corpus of `CLIPS` clips c0, c1, ... whose text says their number; `put` writes its text files."""
    (folder / "a").mkdir(exist_ok=True)
    for i in range(CLIPS):
        (folder / f"a/c{i}.wav").touch()
    rows = [{"audio": f"c{i}.wav", "text": said(i), "id": f"c{i}"} for i in range(CLIPS)]
    if kind == "kaldi":
        put("k/wav.scp", "".join(f"c{i} c{i}.wav\n" for i in range(CLIPS)))
        put("k/text", "".join(f"c{i} {said(i)}\n" for i in range(CLIPS)))
        return {"kind": kind, "dir": "k", "root": "a"}
    if kind == "csv":
        put("l.csv", "audio,text,id\n" + "".join(",".join(row.values()) + "\n" for row in rows))
        return {"kind": kind, "file": "l.csv", "root": "a", "key_field": "id"}
    if kind == "nemo":
        put("m.json", "".join(json.dumps({"audio_filepath": row["audio"], "text": row["text"]}, ensure_ascii=False) + "\n" for row in rows))
        return {"kind": kind, "manifest": "m.json", "root": "a"}
    if kind == "messages":
        talks = [{"messages": [{"role": "user", "content": row["text"]}], "audios": [row["audio"]], "id": row["id"]} for row in rows]
        put("m.json", json.dumps(talks, ensure_ascii=False, indent=1))
        return {"kind": kind, "file": "m.json", "root": "a", "key_field": "id"}
    if kind == "folder":
        for i in range(CLIPS):
            put(f"a/c{i}.txt", said(i) + "\n")
        return {"kind": kind, "root": "a", "sidecars": ["txt"]}
    put("l.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {"kind": "jsonl", "file": "l.jsonl", "root": "a", "key_field": "id"}


FORMS = [(mark, encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le") for mark in ("\ufeff",)]
FORMS += [("", "utf-8"), ("", "cp1252"), ("", "utf-16-le")]


@pytest.mark.parametrize("kind", ["kaldi", "csv", "jsonl", "nemo", "messages", "folder"])
def test_every_clip_has_its_own_text_in_any_encoding_and_line_end(kind: str, tmp_path: Path) -> None:
    for number, ((mark, encoding), end) in enumerate(itertools.product(FORMS, ("\n", "\r\n", "\r"))):
        folder = tmp_path / str(number)
        folder.mkdir()

        def put(name: str, text: str) -> None:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((mark + text.replace("\n", end)).encode(encoding))

        source = corpus(kind, put, folder)
        found = listing(folder, source if mark or encoding == "utf-8" else {**source, "encoding": encoding})
        texts = {item.key: item.metadata.get("text", item.metadata.get("question")) for item in found.items}
        assert texts == {f"c{i}": said(i) for i in range(CLIPS)}, (mark, encoding, end)
        assert not found.unmatched


@pytest.mark.parametrize("kind", ["kaldi", "csv", "jsonl", "nemo", "messages", "folder"])
def test_text_that_is_not_in_its_encoding_is_one_line_with_a_way_out(kind: str, tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("cp1252"))

    source = corpus(kind, put, tmp_path)
    with pytest.raises(InputError, match=r"is not utf-8 text: .*state the `encoding` that it has") as caught:
        listing(tmp_path, source)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="unknown encoding `latin-x`"):
        listing(tmp_path, {**source, "encoding": "latin-x"})


def test_a_mark_within_joined_files_is_no_text(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join("\ufeff" + line for line in text.splitlines(keepends=True)), encoding="utf-8")

    found = listing(tmp_path, corpus("kaldi", put, tmp_path))
    assert {item.key: item.metadata["text"] for item in found.items} == {f"c{i}": said(i) for i in range(CLIPS)}


OPENED = ['"{}', '"well, {}', '"{}" he said', '{} "', '"{}""', '"", {}', '"{}"', '5" {}', '"{} ""so"" it"']


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_stray_quotation_mark_never_swallows_rows(suffix: str, tmp_path: Path) -> None:
    """Any two of eight rows hold any of these marks: the table is refused by file and line, or every row has its own text."""
    mark, path = "," if suffix == "csv" else "\t", tmp_path / f"t.{suffix}"
    refused = 0
    for one, two in itertools.product(OPENED, OPENED):
        cells = {2: one.format("n2"), 5: two.format("n5")}
        path.write_text(f"id{mark}text\n" + "".join(f"{i}{mark}{cells.get(i, f'n{i}')}\n" for i in range(8)))
        try:
            rows = dict(read_table(path, TableFormat()))
        except InputError as error:
            refused += 1
            assert f"({path}, line " in str(error) and "\n" not in str(error)
            continue
        for number, row in rows.items():
            assert number == int(row["id"]) + 2 and [i for i in range(8) if f"n{i}" in row["text"]] == [int(row["id"])], (one, two)
        assert len(rows) == 8
    assert 20 < refused < len(OPENED) ** 2


def test_cells_of_many_lines_are_read_if_the_card_allows_them(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'id,text\r\n# no row\r\na,"one\r\n# two"\r\nb,three\r\n')
    allowed = TableFormat(multiline=True, comment="#")
    assert list(read_table(path, allowed)) == [(3, {"id": "a", "text": "one\n# two"}), (5, {"id": "b", "text": "three"})]
    with pytest.raises(InputError, match=r"open at the line's end: .*`multiline: true`.*t.csv, line 3\)"):
        list(read_table(path, TableFormat(comment="#")))
    path.write_bytes(b'id,text\na,"one\nb,two\n')
    with pytest.raises(InputError, match=r"open at the file's end: .*t.csv, line 2\)"):
        list(read_table(path, allowed))


STEMS = ["talk", "talk.1", "talk.1.2", "dr.smith-0.5", "v1.0", "a.txt", "a", "a.wav", "x..y"]


def test_a_sidecar_belongs_to_the_clip_of_exactly_its_name(tmp_path: Path) -> None:
    for left_out in STEMS:
        folder = tmp_path / left_out.replace(".", "_")
        folder.mkdir()
        for stem in STEMS:
            (folder / f"{stem}.json").write_text(json.dumps({"is": stem}))
            (folder / f"{stem}.txt").write_text(f"of {stem}")
            if stem != left_out:
                (folder / f"{stem}.flac").touch()
        found = listing(folder, {"kind": "folder", "suffixes": ["flac"], "sidecars": ["txt", "json"]})
        for item in found.items:
            stem = item.payload["audio"].removesuffix(".flac")
            assert item.metadata == {"text": f"of {stem}", "is": stem}
        assert [(entry.count, entry.example) for entry in found.unmatched] == [(1, f"{left_out}.txt"), (1, f"{left_out}.json")]


def tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as out:
        for name in names:
            data = b'{"text": "x"}' if name.endswith("json") else b"x"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def unequal(kind: str, folder: Path) -> dict[str, Any]:
    """Two lists of which one has one more entry, called `odd`, than the other."""
    (folder / "a").mkdir()
    for name in ("r0", "r1") + (("odd",) if kind in ("jsonl audio", "kaldi audio") else ()):
        (folder / f"a/{name}.wav").touch()

    def put(name: str, *lines: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(line + "\n" for line in lines))

    row = [json.dumps({"audio": f"r{i}.wav", "audio_filepath": f"r{i}.wav", "id": f"r{i}"}) for i in range(2)]
    odd = json.dumps({"audio": "", "audio_filepath": "odd.wav", "id": "odd"})
    scp = ["r0 r0.wav", "r1 r1.wav"] + ["odd r1.wav"] * (kind in ("kaldi untold", "kaldi unsegmented"))
    put("k/wav.scp", *scp)
    put("k/text", "r0 x", "r1 y", *["odd z"] * (kind == "kaldi text"))
    if "segment" in kind:
        put("k/segments", "r0 r0 0 1", "r1 r1 0 1", *["odd gone 0 1"] * (kind == "kaldi segment"))
    if kind == "jsonl silent":
        put("l.jsonl", *row, odd)
    elif kind == "nemo row" or kind == "nemo member":
        tar(folder / "s.tar", ["r0.wav", "r1.wav", *["odd.wav"] * (kind == "nemo member")])
        put("m.json", *row, *[odd] * (kind == "nemo row"))
        return {"kind": "nemo", "manifest": "m.json", "tars": "s.tar"}
    elif kind.startswith("shar"):
        put("s/cuts.0.jsonl", *[json.dumps({"id": n}) for n in ("r0", "r1", *["odd"] * (kind == "shar cut"))])
        tar(folder / "s/recording.0.tar", ["r0.wav", "r1.wav", *["odd.wav"] * (kind == "shar member")])
        return {"kind": "shar", "dir": "s"}
    elif kind.startswith("webdataset"):
        more = {"webdataset text": "odd.json", "webdataset audio": "odd.wav", "webdataset neither": "odd.pyd"}[kind]
        tar(folder / "s.tar", ["r0.wav", "r0.json", "r1.wav", "r1.json", more])
        return {"kind": "webdataset", "tars": "s.tar"}
    elif kind.startswith("folder"):
        put("a/list.csv", "file_name,x", "r0.wav,1", "r1.wav,2", *["odd.wav,3"] * (kind == "folder row"))
        (folder / "a/odd.wav").touch() if kind == "folder clip" else None
        return {"kind": "folder", "root": "a", "metadata": "list.csv"}
    else:
        put("l.jsonl", *row)
    return {"kind": "kaldi", "dir": "k", "root": "a"} if kind.startswith("kaldi") else {"kind": "jsonl", "file": "l.jsonl", "root": "a"}


KINDS = ["kaldi text", "kaldi untold", "kaldi segment", "kaldi unsegmented", "kaldi audio", "jsonl silent", "jsonl audio", "nemo row"]
KINDS += [
    "nemo member",
    "shar cut",
    "shar member",
    "webdataset text",
    "webdataset audio",
    "webdataset neither",
    "folder row",
    "folder clip",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_list_names_and_another_does_not_is_counted_and_refused_beyond_the_cards_share(kind: str, tmp_path: Path) -> None:
    source = unequal(kind, tmp_path)
    found = listing(tmp_path, source, text_only=True)
    assert {(entry.count, entry.of) for entry in found.unmatched if "odd" in entry.example or "silent" in kind} == {(1, 3)}, found.unmatched
    assert listing(tmp_path, source, text_only=True, unmatched_rate=0.34).unmatched == found.unmatched
    with pytest.raises(InputError, match=r"^1 of 3 .*allowed 30.0%: .*`unmatched_rate`"):
        listing(tmp_path, source, text_only=True, unmatched_rate=0.3)


def test_joined_tables_are_counted(tmp_path: Path) -> None:
    source = unequal("jsonl audio", tmp_path)
    (tmp_path / "t.csv").write_text("id,text\nr0,x\nodd,z\n")
    table = {"file": "t.csv", "column": "id", "on": "id", "take": ["text"], "required": False}
    told = [str(entry) for entry in listing(tmp_path, source, joins=[table]).unmatched]
    assert told[1:] == ["1 of 2 rows of `t.csv` belong to no item, e.g. `odd`", "1 of 2 items have no row in `t.csv`, e.g. `000000002`"]
    with pytest.raises(
        InputError, match=r"1 of 2 rows of `t.csv` belong to no item, e.g. `odd`; allowed 10.0% \(card: joins.unused_rate\)"
    ):
        listing(tmp_path, source, joins=[{**table, "unused_rate": 0.1}])


def test_lists_that_share_nothing_are_refused_and_archives_are_named(tmp_path: Path) -> None:
    source = unequal("kaldi", tmp_path)
    (tmp_path / "k/text").write_text("spk-r0 x\nspk-r1 y\n")
    with pytest.raises(InputError, match="2 of 2 ids of `text` name no utterance .*`spk-r0`"):
        listing(tmp_path, source)
    for value in ("d/data_wav.ark:37", "x.ark:1[0:9]", "raw.scp:2"):
        (tmp_path / "k/wav.scp").write_text(f"r0 {value}\n")
        with pytest.raises(InputError, match="`r0` is .* a part of an archive: archives are not read"):
            listing(tmp_path, source)


def test_check_and_shard_say_what_is_unmatched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from speechkd.stages import check, shard

    source, line = unequal("kaldi text", tmp_path), "look again: 1 of 3 ids of `text` name no utterance"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "write_sample", lambda *_: ({"input": 2, "totals": {"samples": 2, "seconds": 1.0}}, []))
        check.check(card_file(tmp_path, source))
        assert line in capsys.readouterr().out
        patch.setattr(shard, "_write", lambda *_: (_ for _ in ()).throw(InputError("stop")))
        with pytest.raises(InputError, match="stop"):
            shard.shard(card_file(tmp_path, source), tmp_path / "out")
    assert f"shard: {line}" in capsys.readouterr().err
