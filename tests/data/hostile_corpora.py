"""Corpora whose lists disagree: missing and spare entries, odd names and orders, damaged audio, in every layout.

`hostile_plan.py` says what each is made of; a maker here writes it in its layout, and says what must become of it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.data.hostile_plan import DOTTED, ENCODINGS, FRAMES, NAMES, SPACED, TEXTS, Corpus, Plan, clip


def make(kind: str, seed: int, folder: Path) -> Corpus:
    """The corpus of this layout and seed."""
    rng = random.Random(f"{kind} {seed}")
    build, pool, breaks = LAYOUTS[kind]
    count = rng.randint(3, 9)
    encoding, stated = rng.choice(ENCODINGS)
    names = dict(enumerate(rng.sample(pool, count)))
    texts = {n: f"<{n} {rng.choice(TEXTS)} {n}>".replace("\t", " " if "tsv" in kind else "\t") for n in names}
    try:
        "".join([*names.values(), *texts.values(), *(unicodedata.normalize("NFD", name) for name in names.values())]).encode(encoding)
    except UnicodeEncodeError:
        encoding, stated = "utf-8", False
    some = [{n for n in names if rng.random() < share} | {0} for share in (0.9, 0.8, 0.8, 0.8)]
    audio, listed, texted, spoken = some if rng.random() < 0.8 else [set(names)] * 4
    broken = {n for n in audio - {0} if rng.random() < 0.2}
    newline = rng.choice(["\n", "\r\n", "\r"] if breaks else ["\n", "\r\n"])
    return build(Plan(rng, folder, names, texts, audio, broken, listed, texted, spoken, encoding, stated, newline))


def _kaldi(plan: Plan) -> Corpus:
    plan.clips()
    plan.put("k/wav.scp", [f"{plan.names[n]}{plan.rng.choice([' ', chr(9), '  '])}{plan.spelled(n)}.wav" for n in plan.order(plan.listed)])
    plan.put("k/text", [f"{plan.spelled(n)} {plan.texts[n]}{plan.rng.choice(['', ' ', chr(9)])}" for n in plan.order(plan.texted)])
    plan.put("k/utt2spk", [f"{plan.spelled(n)} s{n}" for n in plan.order(plan.spoken)])
    listed = plan.listed
    return Corpus(
        {"kind": "kaldi", "dir": "k", "root": "a", **plan.how()},
        listed,
        listed - (plan.audio - plan.broken),
        strays={"ids of `text`": plan.texted - listed, "ids of `speaker`": plan.spoken - listed, "by no list": plan.audio - listed},
        lacking={"have no `text`": listed - plan.texted, "have no `speaker`": listed - plan.spoken},
        texts={n: plan.texts[n] for n in listed & plan.texted},
        speakers=listed & plan.spoken,
    )


def _segments(plan: Plan) -> Corpus:
    """Utterances of one long recording; those without audio are of a recording that wav.scp does not have."""
    (plan.folder / "a").mkdir(parents=True)
    (plan.folder / "a/long.wav").write_bytes(clip(32_000))
    plan.put("k/wav.scp", ["long long.wav", "idle gone.wav"])
    rows = []
    for n in plan.order(plan.listed):
        start = plan.rng.randrange(0, 24_000) / 16_000
        rows.append(f"{plan.names[n]} {'long' if n in plan.audio else 'gone'} {start:.6f} {start + (FRAMES + n) / 16_000:.6f}")
    plan.put("k/segments", rows)
    plan.put("k/text", [f"{plan.spelled(n)} {plan.texts[n]}" for n in plan.order(plan.texted)])
    listed = plan.listed
    return Corpus(
        {"kind": "kaldi", "dir": "k", "root": "a", **plan.how()},
        listed,
        listed - plan.audio,
        strays={"ids of `text`": plan.texted - listed, "have no segment": {-1}},
        lacking={"have no `text`": listed - plan.texted, "are of no recording": listed - plan.audio},
        texts={n: plan.texts[n] for n in listed & plan.texted},
    )


def _table(plan: Plan, suffix: str, joined: bool) -> Corpus:
    """Rows of a table of any dialect; `joined`: texts are in a table of their own, by the row's id."""
    plan.clips()
    delimiter = "\t" if suffix == "tsv" else plan.rng.choice([",", ";", "|"])
    more = {} if delimiter in (",", "\t") else {"delimiter": delimiter}

    def table(name: str, rows: list[list[str]]) -> None:
        lines = []
        for row in rows:
            stream = io.StringIO()
            quoting: Any = plan.rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
            csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator="").writerow(row)
            lines.append(stream.getvalue())
        plan.put(name, lines)

    texted = {n: f" {plan.texts[n]} " if plan.rng.random() < 0.1 else plan.texts[n] for n in plan.texted}
    rows = [[f"i{n}", f"{plan.spelled(n)}.wav", *([] if joined else [texted.get(n, "")])] for n in plan.order(plan.listed)]
    if suffix == "jsonl":
        more = {}
        plan.put("l.jsonl", [json.dumps(dict(zip(["id", "audio", "text"], row)), ensure_ascii=plan.rng.random() < 0.5) for row in rows])
    else:
        table(f"l.{suffix}", [["id", "audio", *([] if joined else ["text"])], *rows])
    listed = plan.listed
    out = Corpus(
        {"kind": "jsonl" if suffix == "jsonl" else "csv", "file": f"l.{suffix}", "root": "a", "key_field": "id", **more, **plan.how()},
        listed,
        listed - (plan.audio - plan.broken),
        strays={"by no list": plan.audio - listed},
        texts={n: plan.texts[n] if suffix != "jsonl" else texted[n] for n in listed & plan.texted},
    )
    if joined:
        more = {} if delimiter in (",", "\t") else {"delimiter": delimiter}
        table("t.tsv" if delimiter == "\t" else "t.csv", [["is", "text"], *([f"i{n}", plan.texts[n]] for n in plan.order(plan.texted))])
        join = {
            "file": "t.tsv" if delimiter == "\t" else "t.csv",
            "column": "is",
            "take": ["text"],
            "required": False,
            **more,
            **plan.how(),
        }
        out.joins.append(join)
        out.strays["belong to no item"] = plan.texted - listed
        out.lacking["items have no row"] = listed - plan.texted
        out.texts = {n: plan.texts[n] for n in listed & plan.texted}
    return out


def _sidecars(plan: Plan) -> Corpus:
    plan.clips()
    for n in plan.order(plan.texted):
        plan.put(f"a/{plan.spelled(n)}.txt", [plan.texts[n]])
    for n in plan.order(plan.spoken):
        plan.put(f"a/{plan.spelled(n)}.json", [json.dumps({"speaker": f"s{n}"})])
    audio = plan.audio
    return Corpus(
        {"kind": "folder", "root": "a", "sidecars": ["txt", "json"], **plan.how()},
        audio,
        plan.broken,
        strays={"`.txt` files belong": plan.texted - audio, "`.json` files belong": plan.spoken - audio},
        lacking={"have no `.txt`": audio - plan.texted, "have no `.json`": audio - plan.spoken},
        texts={n: plan.texts[n] for n in audio & plan.texted},
        speakers=audio & plan.spoken,
    )


def _folder_table(plan: Plan) -> Corpus:
    plan.clips()
    rows = [{"file_name": f"{plan.spelled(n)}.wav", "text": plan.texts[n] if n in plan.texted else ""} for n in plan.order(plan.listed)]
    plan.put("a/metadata.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])
    listed = plan.listed
    return Corpus(
        {"kind": "folder", "root": "a", "metadata": "metadata.jsonl", **plan.how()},
        listed,
        listed - (plan.audio - plan.broken),
        strays={"clips are not in": plan.audio - listed},
        lacking={"name no clip": listed - plan.audio},
        texts={n: plan.texts[n] for n in listed & plan.texted},
    )


def _rows(plan: Plan, kind: str) -> Corpus:
    """NeMo's manifests, lhotse's cuts and chats, of files."""
    plan.clips()
    lines: list[dict[str, Any]] = []
    for n in plan.order(plan.listed):
        text, path = {"text": plan.texts[n]} if n in plan.texted else {}, f"{plan.spelled(n)}.wav"
        if kind == "nemo":
            lines.append({"audio_filepath": path, "duration": (FRAMES + n) / 16_000, **text})
        elif kind == "messages":
            turns = [{"role": "user", "content": "<audio>x"}, *([{"role": "assistant", "content": plan.texts[n]}] if text else [])]
            lines.append({"messages": turns, "audios": [path]})
        else:
            recording = {"sources": [{"type": "file", "channels": [0], "source": path}]}
            cut = {"id": plan.names[n], "start": 0, "duration": (FRAMES + n) / 16_000, "channel": 0, "recording": recording}
            lines.append({**cut, "supervisions": [text] if text else []})
    key = {"nemo": "manifest", "messages": "file", "lhotse": "cuts"}[kind]
    if kind == "lhotse" and plan.stated:
        plan.encoding, plan.stated = "utf-8", False
    plan.put("l.jsonl", [json.dumps(row, ensure_ascii=plan.rng.random() < 0.5) for row in lines])
    listed = plan.listed
    return Corpus(
        {"kind": kind, key: "l.jsonl", "root": "a", **plan.how()},
        listed,
        listed - (plan.audio - plan.broken),
        strays={"by no list": plan.audio - listed},
        texts={n: plan.texts[n] for n in listed & plan.texted},
    )


def _tar(plan: Plan, name: str, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(plan.folder / name, "w", format=plan.rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])) as out:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def _nemo_tars(plan: Plan) -> Corpus:
    _tar(plan, "s.tar", [(f"{plan.spelled(n)}.wav", plan.bytes_of(n)) for n in plan.order(plan.audio)])
    rows = [
        {"audio_filepath": f"{plan.names[n]}.wav", "text": plan.texts[n] if n in plan.texted else None} for n in plan.order(plan.listed)
    ]
    plan.put("l.json", [json.dumps(row) for row in rows])
    listed = plan.listed
    return Corpus(
        {"kind": "nemo", "manifest": "l.json", "tars": "s.tar", **plan.how()},
        listed,
        listed - (plan.audio - plan.broken),
        strays={"named by no row": plan.audio - listed},
        lacking={"rows have no member": listed - plan.audio},
        texts={n: plan.texts[n] for n in listed & plan.texted},
    )


def _shar(plan: Plan) -> Corpus:
    _tar(plan, "recording.0.tar", [(f"{plan.spelled(n)}.wav", plan.bytes_of(n)) for n in plan.order(plan.audio)])
    cuts = [
        {"id": plan.names[n], "recording": {}, "supervisions": [{"text": plan.texts[n]}] if n in plan.texted else []}
        for n in plan.order(plan.listed)
    ]
    (plan.folder / "cuts.0.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, cuts)).encode("utf-8-sig"), 1))
    listed = plan.listed
    return Corpus(
        {"kind": "shar", "dir": "."},
        listed,
        listed - (plan.audio - plan.broken),
        strays={"belong to no cut": plan.audio - listed},
        lacking={"cuts have no member": listed - plan.audio},
        texts={n: plan.texts[n] for n in listed & plan.texted},
    )


def _webdataset(plan: Plan) -> Corpus:
    """Two tars, between which the keys may restart; spare members are pickles alone."""
    tars: list[list[tuple[str, bytes]]] = [[], []]
    restart = plan.rng.random() < 0.5
    plan.texted |= plan.audio if restart else set()  # audio alone in one tar and text alone in another would be one sample to the reader
    count: list[dict[int, int]] = [{}, {}]
    everything = {*plan.names}
    for n in plan.order(everything):
        number = n % 2
        key = f"{count[number].setdefault(n, len(count[number])):06d}" if restart else plan.names[n]
        parts = [(f"{key}.wav", plan.bytes_of(n))] * (n in plan.audio) + [(f"{key}.txt", plan.texts[n].encode(plan.encoding))] * (
            n in plan.texted
        )
        tars[number] += parts or [(f"{key}.pyd", b"x")]
    for number, members in enumerate(tars):
        plan.rng.shuffle(members)
        _tar(plan, f"s{number}.tar", members)
    items = plan.audio | plan.texted
    return Corpus(
        {"kind": "webdataset", "tars": "s{0,1}.tar", **plan.how()},
        items,
        plan.broken,
        textless=items - plan.audio,
        strays={"left out": everything - items},
        lacking={"but no audio": items - plan.audio, "but no text": items - plan.texted},
        texts={n: plan.texts[n] for n in plan.texted},
    )


def _parquet(plan: Plan) -> Corpus:
    """Rows with the audio's bytes, or with a path to it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plan.clips()
    order = plan.order(plan.listed)
    cells = [
        (
            {"bytes": plan.bytes_of(n), "path": "of another.wav"}
            if n in plan.audio and plan.rng.random() < 0.5
            else {"bytes": None, "path": f"{plan.spelled(n)}.wav"}
        )
        for n in order
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"audio": pa.array(cells, kind), "text": pa.array([plan.texts[n] if n in plan.texted else None for n in order], pa.string())}
    )
    pq.write_table(table, plan.folder / "d.parquet", row_group_size=plan.rng.randint(1, 4))
    return Corpus(
        {"kind": "hf_disk", "path": "d.parquet", "root": "a"},
        plan.listed,
        plan.listed - (plan.audio - plan.broken),
        texts={n: plan.texts[n] for n in plan.listed & plan.texted},
    )


def _spoken(plan: Plan) -> Corpus:
    """Texts that a program speaks; here it copies the file whose name it is told."""
    plan.names, plan.texts = {n: f"<{n}>" for n in plan.names}, {n: f"{plan.folder}/a/<{n}>.wav" for n in plan.names}
    plan.clips()
    rows = [{"id": f"i{n}", "speaker": f"s{n}", "text": plan.texts[n] if n in plan.texted else ""} for n in plan.order(plan.listed)]
    plan.put("l.jsonl", [json.dumps(row) for row in rows])
    voice = {"engine": "command", "argv": ["xargs", "-d", "\n", "-a", "{text}", "-I", "%", "cp", "%", "{wav}"]}
    rows_of = {"kind": "jsonl", "file": "l.jsonl", "key_field": "id", "audio_field": "", **plan.how()}
    listed = plan.listed
    return Corpus(
        {"kind": "tts", "rows": rows_of, "text_field": "text", "voice": voice},
        listed,
        listed & plan.texted - (plan.audio - plan.broken),
        textless=listed - plan.texted,
        lacking={"have no `text` to speak": listed - plan.texted},
        texts={n: plan.texts[n] for n in listed & plan.texted},
        speakers=listed,
    )


Build = Callable[[Plan], Corpus]
_EVERY, _WORDS = NAMES + DOTTED + SPACED, NAMES + DOTTED
LAYOUTS: dict[str, tuple[Build, list[str], bool]] = {  # name -> its maker, names it can have, whether lines may end with CR alone
    "kaldi": (_kaldi, _WORDS, True),
    "kaldi segments": (_segments, _WORDS, True),
    "csv": (lambda plan: _table(plan, "csv", False), _EVERY, True),
    "tsv": (lambda plan: _table(plan, "tsv", False), _EVERY, True),
    "csv joined": (lambda plan: _table(plan, "csv", True), _EVERY, True),
    "jsonl": (lambda plan: _table(plan, "jsonl", False), _EVERY, True),
    "jsonl joined": (lambda plan: _table(plan, "jsonl", True), _EVERY, True),
    "sidecars": (_sidecars, _EVERY, False),
    "folder table": (_folder_table, _EVERY, True),
    "nemo": (lambda plan: _rows(plan, "nemo"), _EVERY, True),
    "nemo tars": (_nemo_tars, _EVERY, True),
    "lhotse": (lambda plan: _rows(plan, "lhotse"), _EVERY, True),
    "shar": (_shar, _EVERY, False),
    "webdataset": (_webdataset, NAMES + SPACED, False),
    "messages": (lambda plan: _rows(plan, "messages"), _EVERY, True),
    "parquet": (_parquet, _EVERY, False),
    "spoken": (_spoken, _EVERY, False),
}
