"""What raw corpora may not do: run, reach outside, claim to be what they are not. One line each, and nothing is executed or followed."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from speechkd.core import text
from speechkd.core.errors import InputError
from speechkd.data.sources import tarfiles
from speechkd.data.sources.tarfiles import list_tar
from tests.data.raw import card_file, fields, noise, samples, shards_of, write


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def rejected(folder: Path, source: dict[str, Any]) -> dict[str, str]:
    """Key -> reason of a corpus whose every clip is rejected but the good one."""
    write(folder / "audio/good.wav", noise(1, 0.2))
    root = shards_of(folder, source, quarantine_rate=1.0).root
    return {line["key"]: line["reason"] for line in map(json.loads, (root / "quarantine.jsonl").read_text().splitlines())}


def test_a_pipe_in_wav_scp_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechkd import cli

    put(tmp_path / "k/wav.scp", f"u1 touch {tmp_path}/run; cat x.wav |\n")
    card = card_file(tmp_path, {"kind": "kaldi", "dir": "k"})
    monkeypatch.setattr(sys, "argv", ["speechkd", "check", str(card)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "`u1` is a command, not a file: pipes in wav.scp are never run" in message


OUTSIDE = ["../secret.wav", "/etc/passwd", "link.wav", "linked/secret.wav", "a/../../secret.wav", "loop.wav", "", "\0.wav", "good.wav/x"]


def outside(tmp_path: Path) -> None:
    """A sound outside of the root that paths and links try to reach."""
    write(tmp_path / "secret.wav", noise(9, 0.2))
    (tmp_path / "audio").mkdir(exist_ok=True)
    (tmp_path / "audio/link.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "audio/linked").symlink_to(tmp_path)
    (tmp_path / "audio/loop.wav").symlink_to(tmp_path / "audio/loop.wav")


def listed(kind: str, folder: Path) -> tuple[dict[str, Any], str]:
    """A source block whose list names the paths of OUTSIDE, and the good one."""
    names = [name for name in [*OUTSIDE, "good.wav"] if name]
    if kind == "nemo":
        put(folder / "l", "".join(json.dumps({"audio_filepath": name, "k": i}) + "\n" for i, name in enumerate(names)))
        return {"kind": "nemo", "manifest": "l", "root": "audio", "key_field": "k"}, str(len(names) - 1)
    if kind == "messages":
        talk = [{"role": "user", "content": "x"}]
        put(folder / "l.jsonl", "".join(json.dumps({"messages": talk, "audios": [name]}) + "\n" for name in names))
        return {"kind": "messages", "file": "l.jsonl", "root": "audio"}, f"{len(names):09d}"
    if kind == "lhotse":
        sources = [[{"type": "file", "channels": [0], "source": name}] for name in names]
        sources += [
            [{"type": "command", "channels": [0], "source": f"touch {folder}/run"}],
            [{"type": "url", "channels": [0], "source": "http://x"}],
        ]
        cuts = [{"id": f"c{i}", "start": 0, "duration": 0.2, "channel": 0, "recording": {"sources": s}} for i, s in enumerate(sources)]
        put(folder / "l.jsonl", "".join(json.dumps(cut) + "\n" for cut in cuts))
        return {"kind": "lhotse", "cuts": "l.jsonl", "root": "audio"}, f"c{len(names) - 1}"
    put(folder / "l/wav.scp", "".join(f"u{i} {name}\n" for i, name in enumerate(names) if "\0" not in name))
    return {"kind": "kaldi", "dir": "l", "root": "audio"}, f"u{len(names) - 1}"


@pytest.mark.parametrize("kind", ["nemo", "messages", "lhotse", "kaldi"])
def test_no_list_reaches_outside_of_the_root(kind: str, tmp_path: Path) -> None:
    outside(tmp_path)
    source, good = listed(kind, tmp_path)
    reasons = rejected(tmp_path, source)
    assert good not in reasons and len(reasons) >= len(OUTSIDE) - 2 and not (tmp_path / "run").exists()
    allowed = ("path must stay below", "is a link to outside", "cannot be found", "no such file", "its recording is of type")
    assert all(reason.startswith(allowed) for reason in reasons.values()), reasons


def test_paths_of_a_dataset_do_not_reach_outside(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    outside(tmp_path)
    cells = [{"bytes": None, "path": name} for name in [*OUTSIDE, "good.wav"]] + [{"bytes": b"RIFFxxxxWAVE", "path": "x"}]
    pq.write_table(pa.table({"audio": cells}), tmp_path / "d.parquet")
    reasons = rejected(tmp_path, {"kind": "hf_disk", "path": "d.parquet", "root": "audio"})
    assert len(reasons) == len(OUTSIDE) + 1 and f"{len(OUTSIDE) + 1:09d}" not in reasons


def tar_of(path: Path, members: dict[str, bytes], mode: Any = "w", **kinds: bytes) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = kinds.get(name.partition(".")[0], tarfile.REGTYPE)
            if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname, info.size = "/etc/passwd", 0
            tar.addfile(info, io.BytesIO(data))
    return path


def wav_bytes(folder: Path) -> bytes:
    return write(folder / "w.wav", noise(5, 0.2)).read_bytes()


def test_links_and_devices_in_a_tar_are_rejected_and_pickles_not_opened(tmp_path: Path) -> None:
    wav = wav_bytes(tmp_path)
    pickle = b"cos\nsystem\n(S'touch run'\ntR."
    members = {
        "a.wav": wav,
        "a.pyd": pickle,
        "a.pickle": pickle,
        "b.wav": b"",
        "c.wav": b"",
        "d.wav": b"",
        "../../e.wav": wav,
        "/abs/f.wav": wav,
    }
    tar_of(tmp_path / "s.tar", members, b=tarfile.SYMTYPE, c=tarfile.LNKTYPE, d=tarfile.CHRTYPE)
    root = shards_of(tmp_path, {"kind": "webdataset", "tars": "s.tar"}, quarantine_rate=1.0).root
    reasons = {line["key"]: line["reason"] for line in map(json.loads, (root / "quarantine.jsonl").read_text().splitlines())}
    assert set(reasons) == {"b", "c", "d"} and set(reasons.values()) == {"is a link, a device or a sparse file in its tar"}
    assert {p.name for p in tmp_path.iterdir()} == {"w.wav", "s.tar", "card.yaml", "out"}, "nothing was unpacked"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_way_of_writing_a_tar_is_listed_as_tarfile_does(format: int, tmp_path: Path) -> None:
    names = ["plain.wav", "d/" + "x" * 90 + ".wav", "ü.wav"] + (["d/" * 60 + "y" * 99 + ".wav"] if format != tarfile.USTAR_FORMAT else [])
    with tarfile.open(tmp_path / "t.tar", "w", format=format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for size, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 511 * size
            info.pax_headers = {"comment": "x"} if format == tarfile.PAX_FORMAT else {}
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(tmp_path / "t.tar") as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isfile()]
    assert [(m.name, m.offset, m.size) for m in list_tar(tmp_path / "t.tar")] == expected


def damaged(path: Path, how: str) -> Path:
    good = tar_of(path, {"a.wav": b"x" * 3000, "b.wav": b"y" * 3000}).read_bytes()
    header = bytearray(good[:512])
    if how == "gzip":
        path.write_bytes(gzip.compress(good))
    elif how == "text":
        path.write_text("this is no tar " * 100)
    elif how == "flipped":
        path.write_bytes(good[:3600] + bytes([good[3600] ^ 1]) + good[3601:])
    elif how == "huge":
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 1 << 40
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    else:
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 10
        path.write_bytes(info.tobuf() + b"999 a=b\n\n\n".ljust(512, b"\0") + bytes(header))
    return path


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("gzip", "a compressed file: unpack it first"),
        ("text", "is not an uncompressed tar, or it is damaged \\(byte 0"),
        ("flipped", "damaged \\(byte 3584"),
        ("huge", "header of 1099511627776 bytes"),
        ("pax", "a header that cannot be read"),
    ],
)
def test_a_file_that_is_no_plain_tar_is_one_line(how: str, says: str, tmp_path: Path) -> None:
    damaged(tmp_path / "s.tar", how)
    with pytest.raises(InputError, match=says) as caught:
        shards_of(tmp_path, {"kind": "webdataset", "tars": "s.tar"})
    assert "\n" not in str(caught.value)


def test_a_tar_that_is_cut_off_loses_its_last_member_alone(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", {"a.wav": wav_bytes(tmp_path), "b.wav": wav_bytes(tmp_path)})
    path.write_bytes(path.read_bytes()[:10_000])
    shards = shards_of(tmp_path, {"kind": "webdataset", "tars": "s.tar"})
    assert list(samples(shards)) == ["a"] and "is cut off" in (shards.root / "quarantine.jsonl").read_text()


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfiles, "MAX_MEMBER", 1000)
    tar_of(tmp_path / "s.tar", {"a.wav": wav_bytes(tmp_path), "b.json": b'{"x": 1}'})
    shards = shards_of(tmp_path, {"kind": "webdataset", "tars": "s.tar"}, text_only=True)
    assert "bytes, allowed 1000" in (shards.root / "quarantine.jsonl").read_text() and fields(shards) == {"b": {"x": 1}}


def test_a_line_that_never_ends_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_LINE", 1 << 16)
    with gzip.open(tmp_path / "c.jsonl.gz", "wb") as stream:
        stream.write(b'{"id": "' + b"x" * (1 << 24))
    (tmp_path / "audio").mkdir()
    with pytest.raises(InputError, match="is longer than 65536 bytes .*line 1"):
        shards_of(tmp_path, {"kind": "lhotse", "cuts": "c.jsonl.gz", "root": "audio"})


def wrong(name: str, folder: Path) -> dict[str, Any]:
    """A corpus with one mistake."""
    write(folder / "audio/good.wav", noise(1, 0.2))
    kaldi, lhotse = {"kind": "kaldi", "dir": "k", "root": "audio"}, {"kind": "lhotse", "cuts": "c.jsonl", "root": "audio"}
    nemo, wds = {"kind": "nemo", "manifest": "m.json", "root": "audio"}, {"kind": "webdataset", "tars": "s.tar"}
    put(folder / "k/wav.scp", "r1 good.wav\n" + ("r1 good.wav\n" if name == "kaldi twice" else ""))
    put(folder / "t.csv", "id,text\na,hi\n")
    cases: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "kaldi twice": (kaldi, {}),
        "kaldi segment": (kaldi, {"k/segments": "u r2 0 1\n"}),
        "kaldi times": (kaldi, {"k/segments": "u r1 2 1\n"}),
        "kaldi channel": (kaldi, {"k/segments": "u r1 0 1 left\n"}),
        "lhotse row": (lhotse, {"c.jsonl": '{"start": 0}\n'}),
        "lhotse list": (lhotse, {"c.jsonl": "[1]\n"}),
        "lhotse key": (lhotse, {"c.jsonl": '{"id": "a", "supervisions": [{"text": "x", "text": "y"}]}\n'}),
        "lhotse gzip": ({**lhotse, "cuts": "c.jsonl.gz"}, {"c.jsonl.gz": "no gzip"}),
        "nemo row": (nemo, {"m.json": '{"text": "x"}\n'}),
        "nemo offset": (nemo, {"m.json": '{"audio_filepath": "good.wav", "offset": -1}\n'}),
        "nemo splits": ({**nemo, "manifest": {"a": "m.json"}, "tars": {"b": "s.tar"}}, {"m.json": "", "s.tar": ""}),
        "webdataset json": (wds, {}),
        "messages role": ({"kind": "messages", "file": "m.json"}, {"m.json": '[{"messages": [{"role": "tool", "content": "x"}]}]'}),
        "messages key": ({"kind": "messages", "file": "m.json"}, {"m.json": '[{"messages": [], "audio": "a.wav", "audio": "b.wav"}]'}),
        "csv columns": ({"kind": "csv", "file": "t.csv", "columns": ["id", "id"]}, {}),
        "messages none": ({"kind": "messages", "file": "m.json"}, {"m.json": '[{"text": 1}]'}),
        "hf column": ({"kind": "hf_disk", "path": "d.parquet", "key_field": "idd"}, {}),
        "hf damaged": ({"kind": "hf_disk", "path": "d.parquet"}, {"d.parquet": "PAR1 no"}),
        "hf folder": ({"kind": "hf_disk", "path": "k"}, {}),
        "folder pattern": ({"kind": "folder", "pattern": "(", "root": "audio"}, {}),
        "folder field": ({"kind": "folder", "pattern": "(?P<a>.)", "key_field": "b", "root": "audio"}, {}),
        "folder table": ({"kind": "folder", "metadata": "m.csv", "root": "audio"}, {"audio/m.csv": "file_name\ngone.wav\n"}),
        "tts rows": ({"kind": "tts", "rows": {"kind": "shar"}, "text_field": "t", "voice": {"engine": "espeak", "voices": ["en"]}}, {}),
        "tts field": (
            {
                "kind": "tts",
                "rows": {"kind": "csv", "file": "t.csv", "audio_field": ""},
                "text_field": "txt",
                "voice": {"engine": "espeak", "voices": ["en"]},
            },
            {},
        ),
        "tts argv": (
            {
                "kind": "tts",
                "rows": {"kind": "csv", "file": "t.csv"},
                "text_field": "t",
                "voice": {"engine": "command", "argv": ["say {text}"]},
            },
            {},
        ),
        "shar tar": ({"kind": "shar", "dir": "sh", "field": "audio"}, {"sh/cuts.000000.jsonl.gz": "", "sh/recording.000000.tar": ""}),
        "shar none": ({"kind": "shar", "dir": "k"}, {}),
    }
    source, files = cases[name]
    for file, said in files.items():
        put(folder / file, said)
    if name == "webdataset json":
        tar_of(folder / "s.tar", {"a.json": b"{broken"})
    if name == "hf column":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": [1], "audio": [{"bytes": b"x", "path": None}]}), folder / "d.parquet")
    return source


@pytest.mark.parametrize(
    ("name", "says"),
    {
        "kaldi twice": "`r1` is given twice: remove a line .*wav.scp, line 2",
        "kaldi segment": "1 of 1 segments are of no recording of wav.scp",
        "kaldi times": "must end after it starts: 2 to 1",
        "kaldi channel": "the optional fourth word a channel",
        "lhotse row": "a cut has an `id`; this object has start .*line 1",
        "lhotse list": "must be one JSON object, given list",
        "lhotse key": "key `text` is given twice: remove one .*line 1",
        "messages key": "key `audio` is given twice: remove one",
        "csv columns": "column `id` is named twice",
        "lhotse gzip": "cannot read `.*c.jsonl.gz`",
        "nemo row": "field `audio_filepath` must be a path; the row has text",
        "nemo offset": "`offset` must be seconds, given `-1`",
        "nemo splits": "manifests and tars must name the same splits",
        "webdataset json": "not valid JSON: .*a.json",
        "messages role": "a message has a role",
        "messages none": "a row has `messages` or `conversations`; this one has text",
        "hf column": "unknown column `idd`; allowed: audio, id; did you mean `id`",
        "hf damaged": "cannot read `.*d.parquet`",
        "hf folder": "is not a `save_to_disk` folder and holds no Parquet files",
        "folder pattern": "is not a regular expression",
        "folder field": "unknown field `b`; allowed: a",
        "folder table": "1 of 1 rows of .*m.csv` name no clip below .*gone.wav",
        "tts rows": "unknown source of texts `shar`; allowed: csv",
        "tts field": "unknown field `txt`; .*did you mean `text`",
        "tts argv": "argv must contain `{wav}`",
        "shar tar": "its folder has the fields recording",
        "shar none": "no `cuts.\\*.jsonl.gz` in",
    }.items(),
)
def test_a_mistake_in_a_corpus_is_one_line(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        shards_of(tmp_path, wrong(name, tmp_path))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
