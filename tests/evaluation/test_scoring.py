"""Strict scorers, controls, and the summary made of them."""

from __future__ import annotations

import unicodedata
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkd.data.cards import Task
from speechkd.data.shards.index import Sample
from speechkd.evaluation.controls import chance, derangements, noise, silence
from speechkd.evaluation.grading import grade, summarise
from speechkd.evaluation.questions import Question, questions
from speechkd.evaluation.runner import Prediction
from speechkd.evaluation.scorers import SCORERS
from speechkd.evaluation.scorers.characters import spaceless

CHOICE = Task(instruction="Which?", field="animal", kind="choice", choices=["cat", "dog"])
WORDS = Task(instruction="What?", field="words", kind="words", choices=["one", "two", "three"], when={"kind": "digits"})


@pytest.mark.parametrize(
    "kind, answer, reference, choices, hits, parsed",
    [
        ("choice", " Cat. ", "cat", ["cat", "dog"], 1, True),
        ("choice", "dog", "cat", ["cat", "dog"], 0, True),
        ("choice", "it is a cat", "cat", ["cat", "dog"], 0, False),
        ("choice", "cat dog", "cat", ["cat", "dog"], 0, False),
        ("choice", "", "cat", ["cat", "dog"], 0, False),
        ("words", "one two", "one two", ["one", "two"], 2, True),
        ("words", "two", "one two", ["one", "two"], 1, True),
        ("words", "one four", "one two", ["one", "two"], 0, False),
        ("words", "", "one two", [], 0, False),
        ("words", "one one one two", "one two", ["one", "two"], 2, True),
        ("characters", "今天天气很好我们去公园", "今天天气很好我们去公圆", [], 10, True),
        ("characters", "今天 天气 很 好。", "今天天气很好", [], 6, True),
        ("characters", "きょうはいい天気です", "きょうはいい天気だ", [], 8, True),
        ("characters", "天气", "今天天气很好", [], 2, True),
        ("characters", "สวัสดีครับ", "สวัสดีค่ะ", [], 7, True),
        ("characters", "。 ", "今天", [], 0, False),
        ("characters", "Ok", "OK", [], 2, True),
        ("characters", "二", "一", ["一", "二"], 0, True),
        ("characters", "三", "一", ["一", "二"], 0, False),
    ],
)
def test_grades(kind: str, answer: str, reference: str, choices: list[str], hits: int, parsed: bool) -> None:
    found = SCORERS.get(kind)(answer, reference, choices)
    assert (found.hits, found.parsed) == (hits, parsed)
    assert found.total == {"choice": 1, "words": len(reference.split()), "characters": len(reference)}[kind]
    assert found.total == found.hits + found.substitutions + found.deletions


@pytest.mark.parametrize(
    "kind, answer, reference, points, insertions, right",
    [
        ("words", "drei drei neun", "drei drei", 1, 1, False),
        ("words", "drei drei", "drei drei", 2, 0, True),
        ("words", "Drei  drei ", "drei drei", 2, 0, True),
        ("words", "neun", "drei drei", 0, 0, False),
        ("words", "drei neun", "drei drei", 1, 0, False),
        ("words", "drei drei " * 3, "drei drei", -2, 4, False),
        ("words", "", "drei drei", 0, 0, False),
        ("characters", "今天天气好好", "今天天气好", 4, 1, False),
        ("characters", "今天，天气好。", "今天天气好", 5, 0, True),
        ("choice", "cat cat", "cat", 0, 0, False),
        ("choice", "cat.", "cat", 1, 0, True),
    ],
)
def test_what_is_said_too_much_costs(kind: str, answer: str, reference: str, points: int, insertions: int, right: bool) -> None:
    choices = ["cat", "dog"] if kind == "choice" else []
    found = SCORERS.get(kind)(answer, reference, choices)
    assert (found.points, found.insertions, found.right) == (points, insertions, right)


def test_reciting_everything_three_times_is_no_way_to_a_high_score() -> None:
    """Graded by hits alone, this student had 100 %."""
    references = ["one two", "three", "two two one"]
    predictions = [Prediction("w", "test", f"k{i}", "", r, " ".join([r] * 3)) for i, r in enumerate(references)]
    score = summarise(grade(predictions, {"w": WORDS}))
    assert score is not None and score.value == pytest.approx(1 - 12 / 6)


_ACCENTED = st.text(st.sampled_from("aéñüç ångố각한がプЁйक़"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(answer=_ACCENTED, reference=_ACCENTED, kind=st.sampled_from([*SCORERS]), form=st.sampled_from(["NFC", "NFD"]))
def test_no_grade_depends_on_the_unicode_form(answer: str, reference: str, kind: str, form: Literal["NFC", "NFD"]) -> None:
    def written(text: str, form: Literal["NFC", "NFD"]) -> str:
        return unicodedata.normalize(form, text)

    grade_ = SCORERS.get(kind)
    for choices in ([], [answer, reference] if kind != "words" else [*answer.split(), *reference.split()]):
        composed = grade_(written(answer, "NFC"), written(reference, "NFC"), [written(c, "NFC") for c in choices])
        assert grade_(written(answer, "NFD"), written(reference, form), [written(c, form) for c in choices]) == composed
        assert grade_(written(reference, form), reference, choices).hits == composed.total


@pytest.mark.parametrize("text", ["今天天气很好", "きょうはいい", "プログラム", "สวัสดี", "ສະບາຍດີ", "សួស្តី", "မင်္ဂလာပါ", "a 今天天气"])
def test_scripts_without_spaces_are_known(text: str) -> None:
    assert spaceless(text)
    assert not any(map(spaceless, ("hello", "123", "", "안녕하세요 여러분", "привет мир", "नमस्ते", "مرحبا", "ok 今")))


def _samples(count: int) -> list[Sample]:
    return [
        Sample(
            f"k{i}",
            0,
            i,
            "test",
            float(i != 3),
            {"animal": ("cat", "dog")[i % 2], "kind": ("digits", "x")[i % 3 > 0], "words": "one two"},
            "",
        )
        for i in range(count)
    ]


def test_questions_apply_where_the_label_is_and_when_holds_and_there_is_sound() -> None:
    samples = _samples(30)
    assert {q.sample.key for q in questions("w", WORDS, "test", samples, 100)} == {f"k{i}" for i in range(0, 30, 3) if i != 3}
    few = questions("c", CHOICE, "test", samples, 7)
    assert len(few) == 7 and [q.sample.key for q in few] == [q.sample.key for q in questions("c", CHOICE, "test", samples[::-1], 7)]


def test_a_derangement_gives_no_clip_its_own_audio_and_each_another_pairing() -> None:
    asked = [Question("c", "test", s, f"Which, {s.key}?", "cat") for s in _samples(9) if s.seconds]
    others = derangements(asked, 5)
    assert len(others) == 5 and len({tuple(q.sample.key for q in other.values()) for other in others}) == 5
    for other in others:
        assert all(other["c", "test", q.sample.key].sample.key != q.sample.key for q in asked)
        assert {o.sample.key for o in other.values()} == {q.sample.key for q in asked}
    assert len(derangements(asked[:3], 5)) == 2, "three questions have two rotations"
    assert derangements(questions("c", CHOICE, "test", _samples(9), 100), 5) == [], "all pairings are known without asking"


def test_silence_and_noise_keep_length_and_level() -> None:
    clip_T = np.sin(np.arange(4000) / 7, dtype=np.float32) * 0.03
    (asked,) = questions("c", CHOICE, "test", _samples(1), 1)
    quiet_T, white_T = silence(lambda _: clip_T)(asked), noise(lambda _: clip_T)(asked)
    assert quiet_T.shape == clip_T.shape and not quiet_T.any() and white_T.dtype == clip_T.dtype
    assert np.sqrt(np.mean(white_T**2)) == pytest.approx(np.sqrt(np.mean(clip_T**2)), rel=1e-4)
    assert abs(np.corrcoef(white_T, clip_T)[0, 1]) < 0.1 and np.array_equal(white_T, noise(lambda _: clip_T)(asked))


def test_chance_and_summary() -> None:
    asked = [Question("c", "test", s, "Which?", str(s.metadata["animal"])) for s in _samples(5)]
    assert chance(asked, CHOICE) == pytest.approx(3 / 5)
    predictions = [
        Prediction("c", "test", q.sample.key, "Which?", q.reference, a) for q, a in zip(asked, "cat dog dog cow cat".split(), strict=True)
    ]
    score = summarise(grade(predictions, {"c": CHOICE}))
    assert score is not None and (score.value, score.n, score.unparsable) == (3 / 5, 5, 1)
    assert summarise([]) is None
