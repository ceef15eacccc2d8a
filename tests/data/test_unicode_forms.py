"""`é` may be one character or two: a file, a row, a value or a label that is only written otherwise is the same one."""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkd.data.audio.raw import Rejected
from speechkd.data.cards import Task, list_corpus, load_card, open_source
from speechkd.data.sources.paths import AudioFolder, AudioPaths
from speechkd.teachers.prompts import PromptConfig, requests, task_applies
from tests.data.corpus import tone, write_card

FORMS = ("NFC", "NFD")
WORD = st.text(st.sampled_from("aéñüßå각がЁй"), min_size=1, max_size=6)


def written(text: str, form: Any) -> str:
    return unicodedata.normalize(form, text)


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(WORD, min_size=1, max_size=3), on_disk=st.sampled_from(FORMS), listed=st.sampled_from(FORMS))
def test_a_file_is_found_in_either_form(parts: list[str], on_disk: str, listed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, *(written(part, on_disk) for part in parts))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        audio = AudioFolder(Path(folder), AudioPaths())
        assert audio.find("/".join(written(part, listed) for part in parts)) == path.resolve()
        missing = audio.find("/".join([*parts[:-1], parts[-1] + "é?"]))
        assert isinstance(missing, Rejected) and missing.reason.startswith("no such file: `")


def test_names_that_differ_in_case_only_are_kept_apart_and_told(tmp_path: Path) -> None:
    card = write_card(tmp_path, [{"id": name, "audio": f"{name}.wav", "text": name} for name in ("A1", "a1", "b2")], fields={})
    listing = list_corpus(load_card(card), open_source(load_card(card), tmp_path), tmp_path)
    assert [item.metadata["text"] for item in listing.items if item.key in ("A1", "a1")] == ["A1", "a1"]
    assert any("2 of 3 keys differ from another in case only" in str(line) for line in listing.unmatched), listing.unmatched
    (tmp_path / "A1.WAV").write_bytes(b"x")
    audio = AudioFolder(tmp_path, AudioPaths())
    missing = audio.find("a1.wav")
    assert (
        isinstance(missing, Rejected)
        and missing.reason == "no such file: `a1.wav`; `A1.WAV` differs in case only: correct the list, or rename it"
    )
    (tmp_path / "a1.wav").write_bytes(b"y")
    assert audio.find("a1.wav") == tmp_path / "a1.wav" and audio.find("A1.WAV") == tmp_path / "A1.WAV"


def test_two_files_of_one_name_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("e\u0301\u00e9.wav", "\u00e9e\u0301.wav"):
        (tmp_path / name).write_bytes(b"x")
    audio = AudioFolder(tmp_path, AudioPaths())
    assert audio.find("e\u0301\u00e9.wav") == tmp_path / "e\u0301\u00e9.wav", "an exact name counts"
    found = audio.find("\u00e9\u00e9.wav")
    assert isinstance(found, Rejected) and "rename one" in found.reason


def test_no_form_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / written("é.wav", "NFD")).write_bytes(b"x")
    (tmp_path / "in" / written("ü.wav", "NFD")).symlink_to(tmp_path / written("é.wav", "NFD"))
    audio = AudioFolder(tmp_path, AudioPaths(root="in"))
    for name in ("../é.wav", "ü.wav", str(tmp_path / "é.wav")):
        assert isinstance(audio.find(name), Rejected), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["csv", "folder"])
def test_rows_values_and_tasks_meet_in_either_form(tmp_path: Path, kind: str, form: str) -> None:
    other = FORMS[1 - FORMS.index(form)]
    (tmp_path / "a").mkdir()
    for number, name in enumerate(("café", "été")):
        soundfile.write(tmp_path / "a" / f"{written(name, form)}.wav", tone(0.3, 16_000, 200 + 50 * number), 16_000)
    lines = [f"{written(name, other)}.wav,{written('español', other)},{written(name, other)}" for name in ("café", "été")]
    source: dict[str, Any] = {"kind": "csv", "file": "a/list.csv", "root": "a", "audio_field": "file_name"}
    if kind == "folder":
        source = {"kind": "folder", "root": "a", "metadata": "list.csv"}
    (tmp_path / "a/list.csv").write_text("file_name,lang,word\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "more.csv").write_text(f"word,accent\n{written('café', form)},a\n{written('été', form)},b\n", encoding="utf-8")
    joins = [{"file": "more.csv", "column": "word", "on": "word", "take": ["accent"]}]
    card = load_card(
        write_card(tmp_path, [], source=source, fields={}, joins=joins, values={"lang": {written("español", form): "Spanish"}})
    )
    listing = list_corpus(card, opened := open_source(card, tmp_path), tmp_path)
    assert not listing.unmatched and [item.metadata["lang"] for item in listing.items] == ["Spanish"] * 2
    assert sorted(str(item.metadata["accent"]) for item in listing.items) == ["a", "b"]
    assert not any(isinstance(clip, Rejected) or clip is None for clip in opened.read(listing.items))


def test_a_label_is_learnt_in_the_composed_form() -> None:
    task = Task(instruction="Which?", field="lang", kind="choice", choices=["español"], when={"place": written("Málaga", "NFC")})
    metadata = {"lang": written("español", "NFD"), "place": written("Málaga", "NFD")}
    assert task_applies(task, metadata)
    [asked] = requests(PromptConfig(template="", per_clip=0), {"lang": task}, "k", metadata)
    assert asked.label == "español" == written("español", "NFC")
