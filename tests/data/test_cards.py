"""Cards: what they add to items, where their paths lead, how they split, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechkd.core.errors import InputError
from speechkd.core.files import digest, read_json
from speechkd.data.audio.clips import RATE, pieces
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.card_schema import card_schema
from speechkd.data.cards import Card, Task, list_items, load_card, open_source
from speechkd.data.sources.base import MissingData
from speechkd.data.sources.paths import braces
from speechkd.stages.check import check
from tests.data.raw import card_file, fields, noise, same, samples, shards_of, write

ROOT = Path(__file__).parents[2]
SOURCE = {"kind": "csv", "file": "list.csv", "root": "wavs", "key_field": "id"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = ["id,audio,sex,speaker,client", "a,a.wav,F,s1,x9", "b,b.wav,M,s2,x8", "c,c.wav,unknown,s1,x7"]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    for i, name in enumerate("abc"):
        write(tmp_path / f"wavs/{name}.wav", noise(i, 0.2 + i / 10))
    (tmp_path / "t1.txt").write_text("a  good morning\nb hello\n")
    (tmp_path / "t2.txt").write_text("c what else\n")
    (tmp_path / "speakers.txt").write_text("; about\ns1 | 20 | | Ann | the first\ns2 | 30 | x\ns9 | 90 | y\n")
    return tmp_path


SPEAKERS = {"file": "speakers.txt", "column": "who", "on": "speaker", "columns": ["who", "age", "name"], "delimiter": "|", "comment": ";"}
JOINS: list[dict[str, Any]] = [
    {"file": "t*.txt", "column": "key", "columns": ["key", "text"], "delimiter": " ", "take": ["text"]},
    {**SPEAKERS, "take": ["age"], "numbers": ["age"], "rest": True},
]


def test_what_a_card_adds_to_its_items(corpus: Path) -> None:
    shards = shards_of(
        corpus,
        SOURCE,
        joins=JOINS,
        fields={"text": "transcript", "sex": "gender"},
        drop=["client"],
        values={"gender": {"F": "female", "M": "male"}},
        constants={"style": "read", "n_speakers": 1},
        combine={"who": ["gender", "speaker", "n_speakers"]},
        audio={"duration_field": "duration"},
    )
    same(samples(shards), {name: noise(i, 0.2 + i / 10) for i, name in enumerate("abc")})
    always = {"style": "read", "n_speakers": 1}
    assert fields(shards) == {
        "a": {
            "transcript": "good morning",
            "gender": "female",
            "speaker": "s1",
            "age": 20,
            "duration": 0.2,
            "who": "female s1 1",
            **always,
        },
        "b": {"transcript": "hello", "gender": "male", "speaker": "s2", "age": 30, "duration": 0.3, "who": "male s2 1", **always},
        "c": {"transcript": "what else", "gender": "unknown", "speaker": "s1", "age": 20, "duration": 0.4, "who": "unknown s1 1", **always},
    }


def test_a_fact_that_is_missing_combines_to_nothing(corpus: Path) -> None:
    (corpus / "list.csv").write_text("id,audio,sex,accent\na,a.wav,F,\nb,b.wav,F,north\n")
    shards = shards_of(corpus, SOURCE, combine={"who": ["sex", "accent"]})
    assert fields(shards) == {"a": {"sex": "F"}, "b": {"sex": "F", "accent": "north", "who": "F north"}}


def test_a_key_that_came_later_changes_no_card_that_does_not_use_it() -> None:
    """Shards are bound to their card's digest."""
    given = {"name": "x", "version": "v1", "licence": "CC0", "source": {"kind": "csv"}}
    later = {"combine": {"a": ["b"]}, "hold_out": {"test": {"share": 0.1}}}
    card = Card.model_validate(given)
    assert card.digest == digest({name: value for name, value in card.model_dump(mode="json").items() if name not in later})
    for name, value in later.items():
        assert Card.model_validate({**given, name: value}).digest != card.digest


def test_what_is_held_out_stays_together_and_stays_out_as_the_corpus_grows(corpus: Path) -> None:
    """By clip a share of them, by speaker all clips of some; who says nothing of what a rule goes by stays in the source's split."""

    def splits(rows: int) -> dict[str, str]:
        lines = ["id,speaker", *(f"k{i},{'' if i % 10 == 9 else f's{i % 40}'}" for i in range(rows))]
        (corpus / "list.csv").write_text("\n".join(lines) + "\n")
        held = {"unseen": {"share": 0.2, "by": "speaker"}, "test": {"share": 0.1}}
        card = load_card(card_file(corpus, {**SOURCE, "audio_field": ""}, hold_out=held))
        return {item.key: item.split for item in list_items(card, open_source(card, corpus), corpus)}

    few, more = splits(400), splits(800)
    assert few == {key: more[key] for key in few}
    speaker = {key: int(key[1:]) % 40 for key in more if int(key[1:]) % 10 != 9}
    unseen = {speaker[key] for key in more if more[key] == "unseen"}
    assert 3 <= len(unseen) <= 12 and {key for key in more if more[key] == "unseen"} == {k for k in speaker if speaker[k] in unseen}
    rest = [key for key in more if more[key] != "unseen"]
    assert 0.06 < sum(more[key] == "test" for key in rest) / len(rest) < 0.14 and set(more.values()) == {"train", "test", "unseen"}


def test_questions_about_one_clip_are_held_out_together(corpus: Path) -> None:
    """Else a student is asked about clips that it was trained on."""
    rows = ["id,audio", *(f"q{i},clip{i // 3}.wav" for i in range(600))]
    (corpus / "list.csv").write_text("\n".join(rows) + "\n")
    card = load_card(card_file(corpus, SOURCE, hold_out={"test": {"share": 0.1}}))
    splits = {int(item.key[1:]): item.split for item in list_items(card, open_source(card, corpus), corpus)}
    assert all(splits[i] == splits[i - i % 3] for i in splits)
    assert 30 < sum(split == "test" for split in splits.values()) < 100


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hold_out": {"test": {"share": 0.5, "by": "speeker"}}}, "unknown field `speeker`; .*did you mean `speaker`.*hold_out.test.by"),
        ({"hold_out": {"a.b": {"share": 0.5}}}, "hold_out: `a.b` must be letters"),
        ({"hold_out": {"test": {"share": 1.0}}}, "less than 1"),
        ({"fields": {"sexx": "gender"}}, "unknown field `sexx`; allowed: client, sex, speaker; did you mean `sex`\\?"),
        (
            {"values": {"gendr": {}}, "fields": {"sex": "gender"}},
            "unknown field `gendr`; allowed: client, gender, speaker; did you mean `gender`",
        ),
        ({"drop": ["clint"]}, "unknown field `clint`; .*did you mean `client`"),
        ({"constants": {"speaker": "x"}}, "two fields for `speaker`"),
        ({"combine": {"who": ["sex", "speeker"]}}, "unknown field `speeker`; allowed: .*did you mean `speaker`"),
        ({"combine": {"who": ["client"]}, "drop": ["client"]}, "unknown field `client`; allowed: sex, speaker"),
        ({"combine": {"speaker": ["sex"]}}, "field `speaker` exists already"),
        ({"joins": [{**JOINS[0], "file": "t1.txt"}]}, "`c` of item `c` is not in `t1.txt`, column `key`"),
        ({"joins": [{**JOINS[0], "take": ["txt"]}]}, "unknown column `txt`; allowed: key, text; did you mean `text`"),
        (
            {"joins": [{**JOINS[0], "required": False, "on": "sex"}]},
            "no item matches a row of `t\\*.txt`: `sex` is like `F`, column `key` like `a`",
        ),
        ({"joins": [{**JOINS[0], "on": "spaeker"}]}, "unknown field `spaeker`; .*did you mean `speaker`"),
        ({"joins": [{**JOINS[0], "columns": ["key", "sex"], "take": ["sex"]}]}, "items already have a field `sex`"),
        ({"joins": [{**JOINS[0], "file": "t?.text"}]}, "no file like `.*t\\?.text`"),
        ({"joins": [{**SPEAKERS, "take": ["age"]}]}, "the row has 5 cells, the table has 3 columns"),
        ({"licence": ""}, "at least 1 character"),
        ({"source": {**SOURCE, "kind": "cvs"}}, "unknown source `cvs`; .*did you mean `csv`"),
        ({"source": {**SOURCE, "numbers": ["age"]}}, "unknown column `age`; allowed: audio, client, id"),
        ({"source": {**SOURCE, "key_field": "idd"}}, "unknown field `idd`; allowed: audio, client, id, .*did you mean `id`"),
        ({"source": {**SOURCE, "key_field": "speaker"}}, "key `s1` is given twice"),
        ({"source": {**SOURCE, "audio_field": "{nam}.wav"}}, "unknown field `nam`"),
        ({"audio": {"max_seconds": 1, "min_seconds": 0.6, "over_long": "split"}}, "at least twice min_seconds"),
        ({"tasks": {"x": {"field": "sex", "kind": "choice"}}}, "either `instruction` or `instruction_field`"),
    ],
)
def test_a_wrong_card_is_one_line(changes: dict[str, Any], says: str, corpus: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        shards_of(corpus, **{"source": SOURCE, **changes})
    assert "\n" not in str(caught.value) and not (corpus / "out").exists()


def test_a_column_without_a_value_is_no_missing_field(corpus: Path) -> None:
    """A language of Common Voice may have no accents at all; its card is the same."""
    (corpus / "list.csv").write_text("id,audio,sex,accents\na,a.wav,,\nb,b.wav,,\n")
    shards = shards_of(corpus, SOURCE, fields={"accents": "accent", "sex": "gender"}, values={"gender": {"F": "female"}})
    assert fields(shards) == {"a": {}, "b": {}}


def test_a_card_without_licence_is_refused(corpus: Path) -> None:
    path = card_file(corpus, SOURCE)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("licence")))
    with pytest.raises(InputError, match="key `licence` is missing"):
        load_card(path)


ESCAPES = [{**SOURCE, "file": "../list.csv"}, {**SOURCE, "root": "/etc"}, {**SOURCE, "file": {"a": "x/../../y.csv"}}]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_path_of_a_card_leaves_the_data_root(source: dict[str, Any], corpus: Path) -> None:
    with pytest.raises(InputError, match="must be a path below the data root"):
        open_source(load_card(card_file(corpus, source)), corpus)


def test_the_data_root_is_the_users_and_no_part_of_the_card(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> None:
    elsewhere = tmp_path_factory.mktemp("cards")
    path = card_file(elsewhere, SOURCE)
    with pytest.raises(MissingData, match=f"no folder `{elsewhere}/wavs`: put the corpus's data there, or set SPEECHKD_DATA"):
        open_source(load_card(path), elsewhere)
    monkeypatch.setenv("SPEECHKD_DATA", str(corpus))
    sharded = shards_of(elsewhere, SOURCE)
    monkeypatch.delenv("SPEECHKD_DATA")
    assert sharded.manifest == shards_of(corpus, SOURCE).manifest


def test_check_says_what_is_there_and_what_is_missing(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "wavs/b.wav").write_bytes(b"broken")
    assert check(card_file(corpus, SOURCE)) == 0
    output = capsys.readouterr().out
    assert "3 items: train 3; fields: client 3, sex 3, speaker 3" in output and "first 3 items: 2 samples, 0.6 s, 1 rejected" in output
    assert "rejected `b`: is neither FLAC nor WAV" in output
    (corpus / "list.csv").rename(corpus / "lists.csv")
    with pytest.raises(InputError, match=f"no file `{corpus}/list.csv`.*did you mean `lists.csv`"):
        check(corpus / "card.yaml")
    (corpus / "lists.csv").unlink()
    with pytest.raises(InputError, match=f"no file `{corpus}/list.csv`.*; `wavs` is there"):
        check(corpus / "card.yaml")
    (corpus / "wavs").rename(corpus.parent / "elsewhere")
    assert check(corpus / "card.yaml") == 0
    assert "card ok: raw/v1, source csv, tasks none\nits data is not here yet: no folder " in capsys.readouterr().out


def test_check_doubts_a_card_that_hears_nothing_or_asks_in_vain(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"instruction": "Who?", "kind": "choice", "choices": ["F", "M"]}
    (corpus / "list.csv").write_text("id,audio,sex,speaker\na,,F,s1\nb,,M,s2\nc,,unknown,s1\n")
    tasks = {"sex": {**task, "field": "sex"}, "age": {**task, "field": "sex", "when": {"speaker": "Ann"}}}
    assert check(card_file(corpus, SOURCE, tasks=tasks, text_only=True)) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("look again")] == [
        "look again: 3 of 3 rows name no audio (field `audio`), e.g. `a`",
        "look again: 3 of 3 audio files are named by no list, e.g. `a.wav`",
        "look again: no item answers task `age` (field `sex`)",
        "look again: 1 items answer task `sex` with none of its choices, e.g. `unknown`",
        "look again: none of them has audio",
    ]
    (corpus / "list.csv").write_text("id,audio,sex,speaker\na,a.wav,F,s1\nb,b.wav,M,s2\nc,c.wav,F,s1\n")
    assert check(card_file(corpus, SOURCE, tasks={"sex": {**task, "field": "sex", "when": {"speaker": "s2"}}})) == 0
    assert "look again" not in capsys.readouterr().out


def test_over_long_clips_are_split_without_losing_a_sample(corpus: Path) -> None:
    long = noise(9, 7.3)
    long[round(2.7 * RATE) : round(2.75 * RATE)] = 0  # a pause in the last quarter of the first part
    write(corpus / "wavs/b.wav", long)
    audio = {"max_seconds": 3.0, "min_seconds": 0.1, "over_long": "split", "whole_only": ["speaker"], "duration_field": "duration"}
    shards = shards_of(corpus, SOURCE, audio=audio, shard_samples=2)
    found = samples(shards)
    parts = [key for key in found if key.startswith("b")]
    assert parts == ["b-part000", "b-part001", "b-part002"] and sorted(found) == ["a", *parts, "c"]
    assert np.array_equal(np.concatenate([found[key] for key in parts]), long.reshape(-1))  # type: ignore[arg-type]
    assert 2.7 <= len(found["b-part000"]) / RATE <= 2.75, "cut in the pause"  # type: ignore[arg-type]
    assert fields(shards)["b-part001"].keys() == {"sex", "client", "duration", "part", "parts"} and "speaker" in fields(shards)["a"]
    assert shards.manifest["input"] == 3 and shards.manifest["totals"]["samples"] == 5 and shards.manifest["quarantined"] == 0
    assert abs(sum(f["duration"] for f in fields(shards).values()) - 7.9) < 1e-9


def test_over_long_clips_are_refused_and_counted(corpus: Path) -> None:
    write(corpus / "wavs/b.wav", noise(9, 7.25))
    shards = shards_of(corpus, SOURCE, audio={"max_seconds": 3.0})
    assert sorted(samples(shards)) == ["a", "c"] and shards.manifest["dropped_seconds"] == 7.25
    entry = json.loads((shards.root / "quarantine.jsonl").read_text())
    assert entry["seconds"] == 7.25 and entry["reason"] == "7.250 s, longer than 3 s"


@pytest.mark.parametrize("seconds", [0.3, 2.0, 2.00001, 2.1, 3.9, 4.05, 100.3])
def test_parts_are_within_the_limits(seconds: float) -> None:
    limits = AudioLimits(max_seconds=2.0, min_seconds=0.3, over_long="split")
    samples_T = noise(3, seconds)[:, 0].astype(np.float32)
    cut = pieces(samples_T, limits)
    assert np.array_equal(np.concatenate(cut), samples_T) and all(0.3 * RATE <= part.size <= 2 * RATE for part in cut)


def test_a_key_that_could_be_a_part_is_refused(corpus: Path) -> None:
    (corpus / "list.csv").write_text("id,audio\na-part001,a.wav\n")
    with pytest.raises(InputError, match="no `-part` to be split"):
        shards_of(corpus, SOURCE, audio={"over_long": "split"})


def test_a_task_asks_its_own_question_or_the_samples() -> None:
    task = Task(instruction_field="question", field="answer", kind="words")
    assert task.question({"question": "Why?", "answer": "so"}) == "Why?"
    from speechkd.teachers.prompts import PromptConfig, requests

    config = PromptConfig(template="x", instructions=[])
    asked = list(requests(config, {"qa": task}, "k", {"question": "Why?", "answer": "so"}))
    assert [(r.question, r.label) for r in asked] == [("Why?", "so")] and not list(requests(config, {"qa": task}, "k", {"answer": "so"}))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a_{0..2}.tar", ["a_0.tar", "a_1.tar", "a_2.tar"]),
        ("audio__OP_08..10_CL_.tar", ["audio_08.tar", "audio_09.tar", "audio_10.tar"]),
        ("{x,y}/{000..001}", ["x/000", "x/001", "y/000", "y/001"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert braces(pattern) == names


@pytest.mark.parametrize("pattern", ["a{0..9", "a{0..9999999}", "{0..999}{0..999}"])
def test_braces_that_are_wrong_or_too_many(pattern: str) -> None:
    with pytest.raises(InputError, match="brace|more than"):
        braces(pattern)


def test_the_schema_is_up_to_date() -> None:
    """`make schema` renews it."""
    assert read_json(ROOT / "shards/card.schema.json") == card_schema()


def test_the_schema_knows_every_key_of_a_card() -> None:
    schema = card_schema()
    assert set(schema["properties"]) == set(Card.model_fields) and schema["additionalProperties"] is False
    kinds = [
        schema["$defs"][one["$ref"].rsplit("/", 1)[1]]["properties"]["kind"]["const"]
        for one in schema["properties"]["source"]["oneOf"]
        if "$ref" in one  # the last one is a source of the user's own, `module:NAME`
    ]
    from speechkd.data.sources import SOURCES

    assert sorted(kinds) == sorted(SOURCES)
