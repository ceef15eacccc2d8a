"""Quality gates: the measures of an answer, and what thresholds drop, on answers that any person would judge the same way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from speechkd.teachers.gates import AsrGate, GateConfig, Measures, ReferenceFacts, dropped, measure, repetition

CLASSES = {"language": frozenset({"german", "french", "finnish"}), "gender": frozenset({"male", "female"})}
GROUND = ReferenceFacts(["language", "gender", "transcript"], CLASSES, ("asr", "transcript"), languages=True)
CLIP = {"language": "German", "gender": "female", "transcript": "drei sieben"}


def of(text: str, asked: str | None = None, **metadata: Any) -> Measures:
    return measure(GROUND, text, {**CLIP, **metadata}, asked)


def test_coverage_is_the_share_of_the_facts_that_are_named() -> None:
    assert of("A female voice says “Drei, sieben” in German.").coverage == 1.0
    assert of("She counts.").coverage == 0.0
    assert of("Someone says drei in German.").coverage == pytest.approx((1 + 0 + 0.5) / 3)
    assert of("German", asked="language").coverage == 1.0
    assert math.isnan(measure(GROUND, "x", {}, None).coverage)


def test_contradictions_are_other_values_in_place_of_the_own() -> None:
    assert of("A male speaker, in French.").contradictions == 2
    assert of("A female speaker: “female” holds no male.").contradictions == 0
    assert of("German, not French").contradictions == 0, "who names the right value may name others"
    assert of("finnish", asked="language").contradictions == 1
    assert of("male", asked="language").contradictions == 0


def test_words_of_the_transcript_contradict_nothing() -> None:
    noise = ReferenceFacts(["noise", "transcript"], {"noise": frozenset({"clean", "other"})})
    clip = {"noise": "clean", "transcript": "He came the other day."}
    assert measure(noise, "Someone says “he came the other day”.", clip, None).contradictions == 0
    assert measure(noise, "A quiet room; the other day is mentioned.", clip, None).contradictions == 0
    assert measure(noise, "other", clip, "noise").contradictions == 1, "asked for the field, an answer quotes nothing"
    assert measure(noise, "It is clean, no other noise.", {**clip, "transcript": "a clean room"}, None).contradictions == 0
    assert measure(noise, "The noise is other.", {**clip, "transcript": "He came."}, None).contradictions == 1
    unread = ReferenceFacts(["noise"], noise.classes)
    assert measure(unread, "The noise is other.", clip, None).contradictions == 1, "what the teacher did not read it cannot quote"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot hear audio.",
        "I can’t listen to recordings.",
        "As an AI language model, I have no audio_model.",
        "There is no audio in your message.",
        "No audio was provided.",
        "Please upload the audio file so that I can help.",
        "Based on the provided JSON, the speaker is female.",
        "I do not actually hear anything.",
        "You did not attach a recording, so there is nothing to describe.",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    assert of(text).refusal


@pytest.mark.parametrize(
    "text",
    [
        "A woman says that she is here.",
        "There is no background noise, and the recording is clear.",
        "The speaker is sorry for the delay.",
        "A man asks: can you hear me?",
        "drei sieben",
        "The text is read aloud by a female voice.",
    ],
)
def test_plain_answers_are_no_refusals(text: str) -> None:
    assert not of(text).refusal


def test_repetition_counts_what_was_there_before() -> None:
    assert repetition("a b c d e f g".split()) == 0.0
    assert repetition(("and so on " * 20).split()) > 0.9
    assert of("the cat sat down. " * 10).repetition > 0.8 and of("short").repetition == 0.0


def test_the_language_of_an_answer() -> None:
    assert of("A woman speaks slowly and clearly in a quiet room.").language == "en"
    assert of("Eine Frau spricht langsam und deutlich in einem ruhigen Zimmer.").language == "de"
    assert of("一个女人在安静的房间里慢慢地、清楚地说话，她说的是德语，背景里没有别的声音。").language == "zh"
    assert of("drei sieben").language == ""


def test_word_errors_of_the_recogniser() -> None:
    assert of("x", asr="Drei Sieben!").wer == 0.0
    assert of("x", asr="drei acht").wer == 0.5
    assert math.isnan(of("x").wer)


def table(*texts: str, **metadata: Any) -> dict[str, np.ndarray]:
    rows = [of(text, **metadata) for text in texts]
    return {name: np.array([getattr(row, name) for row in rows]) for name in Measures._fields}


TEXTS = [
    "A female voice says drei sieben in German, slowly and clearly.",
    "I'm sorry, I cannot hear the audio that you mention.",
    "A man speaks French, he says that it rains in the garden.",
    "again and again and again and again and again and again and again",
    "Eine weibliche Stimme sagt drei sieben auf Deutsch, ganz langsam.",
    "ok",
]


@pytest.mark.parametrize(
    "settings, reason, expected",
    [
        ({"drop_refusals": True}, "refusal", [1]),
        ({"max_contradictions": 0}, "contradiction", [2]),
        ({"min_coverage": 0.9}, "coverage", [1, 2, 3, 4, 5]),
        ({"max_repetition": 0.5}, "repetition", [3]),
        ({"min_words": 3}, "too short", [5]),
        ({"max_words": 12}, "too long", [3]),
        ({"languages": ["en"]}, "language", [4]),
        ({"whole_traces": True}, "no whole trace", [0, 1, 2, 3, 4, 5]),
        ({"asr": AsrGate(hypothesis="asr")}, "asr", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_each_gate_drops_what_it_is_for(settings: dict[str, Any], reason: str, expected: list[int]) -> None:
    found = dropped(GateConfig(**settings), table(*TEXTS), np.ones(len(TEXTS), bool))
    assert list(found) == [reason] and np.flatnonzero(found[reason]).tolist() == expected


def test_tasks_need_not_cover_and_nothing_set_drops_nothing() -> None:
    measured = table(*TEXTS)
    assert not dropped(GateConfig(min_coverage=0.9), measured, np.zeros(len(TEXTS), bool))["coverage"].any()
    assert dropped(GateConfig(), measured, np.ones(len(TEXTS), bool)) == {} and not GateConfig().active
    good = table(TEXTS[0], asr="drei sieben")
    assert not dropped(GateConfig(asr=AsrGate(hypothesis="asr", max_wer=0.0)), good, np.ones(1, bool))["asr"].any()
