"""Layouts that no library writes: tables, Kaldi, folders, messages, spoken texts; and audio containers and parts of files."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechkd.core.errors import InputError
from speechkd.data.audio.clips import decode_bytes, decode_file
from speechkd.data.audio.raw import RawClip, Rejected, Span
from speechkd.data.cards import list_items, load_card, open_source
from speechkd.data.sources.tts import TtsSource
from tests.data.raw import card_file, fields, noise, same, samples, shards_of, write


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl_with_a_list_per_split_and_built_names(tmp_path: Path) -> None:
    clips = {f"d{i}_u{j}": noise(10 * i + j, 0.3) for i in range(2) for j in range(2)}
    for key, pcm in clips.items():
        write(tmp_path / f"wavs/dia{key[1]}_utt{key[4]}.wav", pcm)
    for i, split in enumerate(("train", "dev")):
        rows = [{"d": i, "u": j, "text": f"say {j}", "nested": {"x": 1}, "list": [1], "none": None, "empty": ""} for j in range(2)]
        put(tmp_path / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "file": {"train": "train.jsonl", "dev": "dev.jsonl"}, "root": "wavs"}
    shards = shards_of(tmp_path, {**source, "audio_field": "dia{d}_utt{u}.wav", "key_field": "d{d}_u{u}"})
    same(samples(shards), clips)
    assert shards.splits() == {"dev": 2, "train": 2} and fields(shards)["d1_u0"] == {"d": 1, "u": 0, "text": "say 0", "nested.x": 1}
    counted = shards_of(tmp_path, {**source, "audio_field": "dia{d}_utt{u}.wav"}, version="v2")
    assert sorted(samples(counted)) == ["dev-000000001", "dev-000000002", "train-000000001", "train-000000002"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_table(suffix: str, tmp_path: Path) -> None:
    clips = {"one": noise(1, 0.3), "two": noise(2, 0.4)}
    for key, pcm in clips.items():
        write(tmp_path / f"clips/{key}.wav", pcm)
    cell, mark = ('"a, ""b"""', ",") if suffix == "csv" else ('say "b"', "\t")
    lines = [mark.join(row) for row in (["path", "sentence", "age", "votes"], ["one.wav", cell, "007", "3"], ["two.wav", "", "", "2.5"])]
    put(tmp_path / f"list.{suffix}", "\ufeff# a comment\n" + "\n".join(lines) + "\n\n")
    put(tmp_path / f"list.{suffix}", "\n".join(["# about", *lines, "#later", ""]))
    style = {"comment": "#", "numbers": ["votes"], "quotes": suffix == "csv"}
    named = {"key_field": "path", "clean_keys": True, "audio_field": "{path}"}
    shards = shards_of(tmp_path, {"kind": "csv", "file": f"list.{suffix}", "root": "clips", **style, **named})
    same(samples(shards), clips)
    assert fields(shards) == {
        "one": {"sentence": 'a, "b"' if suffix == "csv" else 'say "b"', "age": "007", "votes": 3},
        "two": {"votes": 2.5},
    }


def test_table_of_texts_alone(tmp_path: Path) -> None:
    put(tmp_path / "q.csv", "id,question\na,Why?\nb,How?\n")
    shards = shards_of(tmp_path, {"kind": "csv", "file": "q.csv", "audio_field": "", "key_field": "id"})
    assert samples(shards) == {"a": None, "b": None} and fields(shards)["b"] == {"question": "How?"}


@pytest.fixture
def kaldi(tmp_path: Path) -> Path:
    for name in ("r1", "r2"):
        write(tmp_path / f"audio/{name}.wav", noise(int(name[1]), 3, channels=2))
    put(tmp_path / "kaldi/wav.scp", "r1 /corpus/audio/r1.wav\nr2  audio/r2.wav\n")
    put(tmp_path / "kaldi/segments", "r1-a r1 0.5 1.25\nr1-b r1 1.25 -1 B\nr2-a.x r2 0.333 2.8765 0\n")
    put(tmp_path / "kaldi/text", "r1-a good morning\nr1-b\nr2-a.x buenos días\n")
    put(tmp_path / "kaldi/utt2spk", "r1-a s1\nr1-b s1\nr2-a.x s2\n")
    put(tmp_path / "kaldi/spk2gender", "s1 f\ns2 m\n")
    put(tmp_path / "kaldi/utt2accent", "r1-a welsh\n")
    return tmp_path


def test_kaldi_segments(kaldi: Path) -> None:
    """Parts of two-channel recordings: all channels averaged as any clip's, or the one that the segment names."""
    shards = shards_of(kaldi, {"kind": "kaldi", "dir": "kaldi", "moved": {"/corpus": ""}})
    one, two = (noise(i, 3, channels=2).astype(np.float64) for i in (1, 2))
    found = samples(shards)
    assert np.abs(found["r1-a"] - one[8000:20000].mean(axis=1)).max() <= 0.5  # type: ignore[operator]
    same(
        {k: v for k, v in found.items() if k != "r1-a"},
        {"r1-b": one[20000:, 1].astype(np.int16), "r2-a_x": two[5328:46024, 0].astype(np.int16)},
    )
    assert fields(shards)["r1-a"] == {"speaker": "s1", "accent": "welsh", "text": "good morning", "gender": "female"}
    assert "text" not in fields(shards)["r1-b"] and fields(shards)["r2-a_x"]["text"] == "buenos días"


def test_kaldi_recordings_without_segments(kaldi: Path) -> None:
    (kaldi / "kaldi/segments").unlink()
    shards = shards_of(kaldi, {"kind": "kaldi", "dir": {"dev": "kaldi"}, "moved": {"/corpus": ""}}, unmatched_rate=1)
    assert {k: v.size for k, v in samples(shards).items() if v is not None} == {"r1": 48000, "r2": 48000} and shards.splits() == {"dev": 2}


def test_folder_by_pattern_sidecars_and_table(tmp_path: Path) -> None:
    clips = {"DC/a01": noise(1, 0.3), "DC/sa02": noise(2, 0.3), "JE/a01": noise(3, 0.3)}
    for name, pcm in clips.items():
        write(tmp_path / f"data/{name}.wav", pcm)
    put(tmp_path / "data/DC/readme.txt", "no clip")
    named = {name.replace("/", "_"): pcm for name, pcm in clips.items()}
    pattern = r"^(?P<speaker>[A-Z]+)/(?P<emotion>sa|[a-z])(?P<number>\d+)\.wav$"
    shards = shards_of(tmp_path, {"kind": "folder", "root": "data", "pattern": pattern, "split_field": "speaker"})
    same(samples(shards), named)
    assert fields(shards)["DC_sa02"] == {"emotion": "sa", "number": "02"} and shards.splits() == {"DC": 2, "JE": 1}
    put(tmp_path / "data/DC/a01.json", '{"age": 30}')
    put(tmp_path / "data/DC/a01.txt", "hello\n")
    beside = shards_of(tmp_path, {"kind": "folder", "root": "data", "sidecars": ["json", "txt"]}, version="v2")
    assert fields(beside) == {"DC_a01": {"age": 30, "text": "hello"}, "DC_sa02": {}, "JE_a01": {}}
    put(tmp_path / "data/metadata.csv", "file_name,label\nDC/a01.wav,x\nJE/a01.wav,y\n")
    listed = shards_of(tmp_path, {"kind": "folder", "root": "data", "metadata": "metadata.csv"}, version="v3")
    assert fields(listed) == {"DC_a01": {"label": "x"}, "JE_a01": {"label": "y"}}


SWIFT = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<audio>What is said?"}],
    "audios": ["a.wav"],
    "id": "q/1",
}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "<audio>Who?"}, {"from": "gpt", "value": "Ann"}, {"from": "human", "value": "Sure?"}]
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_messages(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / "wavs/a.wav", noise(1, 0.3))
    swift = {**SWIFT, "messages": [*SWIFT["messages"], {"role": "assistant", "content": "hello"}]}
    rows = [swift, {**SHAREGPT, "audios": ["a.wav"]}, SHAREGPT, {**swift, "audios": ["a.wav", "a.wav"]}]
    put(tmp_path / f"m.{suffix}", json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    shards = shards_of(tmp_path, {"kind": "messages", "file": f"m.{suffix}", "root": "wavs"}, text_only=True)
    found = samples(shards)
    assert found.pop("000000003") is None
    same(found, {"000000001": noise(1, 0.3), "000000002": noise(1, 0.3)})
    assert fields(shards)["000000001"] == {"system": "Be brief.", "question": "What is said?", "answer": "hello", "id": "q/1"}
    assert fields(shards)["000000002"] == {"question": "Who?", "answer": "Ann", "question_2": "Sure?"}
    assert "has 2 audios" in (shards.root / "quarantine.jsonl").read_text()


class Speaker(BaseHTTPRequestHandler):
    """Answers `/v1/audio/speech` as OpenAI's API does; the voice `busy` is refused twice before it is served."""

    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Speaker.asked.append({**wish, "key": self.headers.get("Authorization"), "path": self.path})
        again = wish["voice"] == "busy" and sum(w["input"] == wish["input"] for w in Speaker.asked) <= 2
        buffer = io.BytesIO()
        soundfile.write(buffer, noise(len(wish["input"]), 0.2), 16_000, format="WAV", subtype="PCM_16")
        body = b"not sound" if wish["input"] == "mute" else buffer.getvalue()
        self.send_response(503 if again else 400 if wish["input"] == "rude" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    Speaker.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Speaker) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1"
        running.shutdown()


def tts(folder: Path, voice: dict[str, Any], **changes: Any) -> dict[str, Any]:
    texts = ["one", "two words", "rude", "mute", "", "x" * 50]
    put(folder / "q.csv", "id,question,answer\n" + "".join(f"q{i},{text},a{i}\n" for i, text in enumerate(texts)))
    rows = {"kind": "csv", "file": "q.csv", "audio_field": "", "key_field": "id"}
    return {"kind": "tts", "rows": rows, "text_field": "question", "voice": voice, "max_letters": 40, **changes}


def test_texts_spoken_by_a_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    shards = shards_of(
        tmp_path, tts(tmp_path, {"engine": "server", "url": server, "model": "m", "voices": ["busy"], "attempts": 3}), text_only=True
    )
    found = samples(shards)
    assert found.pop("q4") is None
    same(found, {"q0": noise(3, 0.2), "q1": noise(9, 0.2)})
    assert fields(shards)["q0"] == {"question": "one", "answer": "a0", "voice": "busy"}
    reasons = {line["key"]: line["reason"] for line in map(json.loads, (shards.root / "quarantine.jsonl").read_text().splitlines())}
    assert reasons == {
        "q2": "the speech server answered status 400",
        "q3": "is neither FLAC nor WAV, Ogg or MP3",
        "q5": "text has 50 letters, allowed 40",
    }
    first = Speaker.asked[0]
    assert first["key"] == "Bearer secret" and first["path"] == "/v1/audio/speech" and first["response_format"] == "wav"
    assert "secret" not in "".join(path.read_text(errors="replace") for path in shards.root.rglob("*") if path.is_file())


def test_a_speech_server_that_is_not_there_stops_the_stage(tmp_path: Path) -> None:
    voice = {"engine": "server", "url": "http://127.0.0.1:9/v1", "model": "m", "voices": ["v"], "attempts": 1}
    with pytest.raises(InputError, match="no answer from `http://127.0.0.1:9/v1/audio/speech` in 1 attempts"):
        shards_of(tmp_path, tts(tmp_path, voice), text_only=True)


COMMAND = """
import shutil, sys
said, wav, voice = sys.argv[1:]
text = open(said, encoding="utf-8").read()
sys.exit("too rude") if text == "rude" else shutil.copy(f"{voice}.wav" if voice.startswith("/") else voice, wav) if text != "mute" else None
"""


def test_texts_spoken_by_a_command(tmp_path: Path) -> None:
    """No shell: a text and a voice with a shell's letters in them stay what they are."""
    program = put(tmp_path / "speak.py", COMMAND)
    voice = str(write(tmp_path / "v;$(touch x).wav", noise(7, 0.2)))
    argv = [sys.executable, str(program), "{text}", "{wav}", "{voice}"]
    shards = shards_of(tmp_path, tts(tmp_path, {"engine": "command", "argv": argv, "voices": [voice.removesuffix(".wav")]}), text_only=True)
    found = samples(shards)
    assert found.pop("q4") is None
    same(found, {"q0": noise(7, 0.2), "q1": noise(7, 0.2)})
    reasons = {line["key"]: line["reason"] for line in map(json.loads, (shards.root / "quarantine.jsonl").read_text().splitlines())}
    assert reasons["q2"].endswith("ended with 1: too rude") and "wrote no audio" in reasons["q3"]
    with pytest.raises(InputError, match="cannot run `no-such-program`: No such file"):
        shards_of(
            tmp_path, tts(tmp_path, {"engine": "command", "argv": ["no-such-program", "{text}", "{wav}"]}), version="v2", text_only=True
        )


def test_texts_spoken_by_espeak(tmp_path: Path) -> None:
    from speechkd.stages.shard import shard

    source = tts(tmp_path, {"engine": "espeak", "voices": ["en-us", "de+f2"]})
    from speechkd.data.shards.index import open_shards

    shards = open_shards(shard(card_file(tmp_path, source, text_only=True), tmp_path / "shards", workers=1, quiet=True))
    found = {key: 0 if pcm is None else pcm.size for key, pcm in samples(shards).items()}
    assert sorted(found) == ["q0", "q1", "q2", "q3", "q4"] and found["q4"] == 0 and found["q1"] > found["q0"] > 4000


@pytest.mark.parametrize(
    ("voice", "says"),
    [
        ("en-gb", "unknown espeak voice `en-gb`; allowed: .*did you mean `en"),
        ("en-us+f22", "unknown variant of an espeak voice `f22`; allowed: .*did you mean `f2`"),
    ],
)
def test_a_voice_that_espeak_lacks_is_told_before_the_texts_are_read(voice: str, says: str, tmp_path: Path) -> None:
    config = TtsSource.Config.model_validate(tts(tmp_path, {"engine": "espeak", "voices": ["en-us+f2", voice]}))
    with pytest.raises(InputError, match=says):
        TtsSource(config, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "subtype"), [("x.flac", "PCM_16"), ("x.wav", "FLOAT"), ("x.ogg", "VORBIS"), ("x.opus", "OPUS"), ("x.mp3", None)]
)
def test_containers(name: str, subtype: str | None, tmp_path: Path) -> None:
    """A tone comes back in every container that corpora use, whole and in part."""
    rate = 48_000 if name == "x.opus" else 16_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    container = {"x.opus": "OGG", "x.mp3": "MP3"}.get(name)
    soundfile.write(tmp_path / name, tone, rate, subtype=subtype, format=container)
    for clip, start in ((decode_file(tmp_path / name), 0), (decode_bytes((tmp_path / name).read_bytes(), Span(0.5, 1.0)), rate // 2)):
        assert isinstance(clip, RawClip), clip
        length = rate if start else len(clip.samples_TC)
        assert abs(len(clip.samples_TC) - (rate if start else 2 * rate)) < 0.1 * rate
        middle = slice(length // 4, length // 2)
        lag = max(range(-40, 40), key=lambda n: float(np.dot(clip.samples_TC[middle, 0], tone[start:][middle.start + n : middle.stop + n])))
        assert np.abs(clip.samples_TC[middle, 0] - tone[start:][middle.start + lag : middle.stop + lag]).max() < 0.06


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        (Span(1.5, 1.0), "is not inside 2.000 s"),
        (Span(2.5), "is not inside"),
        (Span(-1, 1), "is not inside"),
        (Span(0, 1, 2), "has 2 channels"),
    ],
)
def test_parts_that_are_not_there_are_rejected(span: Span, reason: str, tmp_path: Path) -> None:
    clip = decode_file(write(tmp_path / "a.wav", noise(1, 2, channels=2)), span)
    assert isinstance(clip, Rejected) and reason in clip.reason


def test_a_rounded_end_is_the_files_end(tmp_path: Path) -> None:
    clip = decode_file(write(tmp_path / "a.wav", noise(1, 2)), Span(1.0, 1.02))
    assert isinstance(clip, RawClip) and len(clip.samples_TC) == 16_000


def test_the_order_of_files_on_disk_does_not_matter(tmp_path: Path) -> None:
    for order in ("abc", "cba"):
        for name in order:
            write(tmp_path / order / f"{name}.wav", noise(ord(name), 0.1))
    both = []
    for order in ("abc", "cba"):
        path = card_file(tmp_path, {"kind": "folder", "root": order})
        card = load_card(path)
        both.append(list_items(card, open_source(card, path.parent), path.parent))
    assert both[0] == both[1]
