"""Every backend of the table: one answer per request, in order, bound to the prompt; the stand-in really reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd.core.types import SIGNALS
from speechkd.data.cards import Task
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.teachers import TEACHERS
from speechkd.teachers.base import Request, Teacher
from speechkd.teachers.prompts import PromptConfig, requests

ROOT = Path(__file__).parents[2]
LLM = str(ROOT / "standins/llm")
FIELDS = ["language", "gender", "rate", "transcript"]
SETTINGS = {"hf_local": {"model": LLM, "fields": FIELDS, "max_new_tokens": 24, "batch_size": 8, "dtype": "float32"}, "label": {}}
TASKS = {
    "language": Task(instruction="What language is spoken?", field="language", kind="choice"),
    "gender": Task(instruction="Is the speaker male or female?", field="gender", kind="choice"),
    "digits": Task(instruction="Which digits are spoken?", field="transcript", kind="words", when={"kind": "digits"}),
}


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    """The product's template with the stand-in's tokenizer."""
    return Prompt((ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8").rstrip("\n"), load_tokenizer(LLM))


@pytest.fixture(scope="module", params=list(TEACHERS))
def teacher(request: pytest.FixtureRequest, prompt: Prompt) -> Teacher:
    """Each backend once."""
    part = TEACHERS.get(request.param)
    assert part.SIGNALS <= set(SIGNALS)
    return part(part.Config.model_validate({"backend": request.param, **SETTINGS[request.param]}), prompt)


def _asked() -> list[Request]:
    clips = [
        ("a", {"language": "german", "gender": "female", "rate": "slow", "transcript": "drei sieben", "kind": "digits"}),
        ("b", {"language": "finnish", "gender": "male", "rate": "fast", "transcript": "yksi kaksi neljä", "kind": "digits"}),
        ("c", {"language": "turkish", "gender": "male", "rate": "normal", "transcript": "bu küçük ev burada", "kind": "phrase"}),
    ]
    config = PromptConfig(template="", instructions=["Describe the audio."])
    return [request for key, metadata in clips for request in requests(config, TASKS, key, metadata)]


def test_one_answer_per_request_in_order(teacher: Teacher, prompt: Prompt) -> None:
    asked = [request for request in _asked() if teacher.accepts(request)]
    answers = teacher.answer(asked)
    assert len(answers) == len(asked)
    again = teacher.answer(asked[::-1])[::-1]
    assert [a.tokens for a in answers] == [a.tokens for a in again]
    for request, answer in zip(asked, answers, strict=True):
        assert answer.stop == "eos" and answer.tokens[-1] == prompt.end_of_turn and answer.prompt_tokens > 5
        assert prompt.decode(answer.tokens) == answer.text
        if request.label is not None:
            assert answer.text == request.label


def test_an_answer_that_does_not_end_is_said_to_be_cut(prompt: Prompt) -> None:
    part = TEACHERS.get("hf_local")
    short = part(part.Config.model_validate({**SETTINGS["hf_local"], "max_new_tokens": 2}), prompt)
    open_question = next(request for request in _asked() if request.turn.startswith("open"))
    assert short.answer([open_question])[0].stop == "length"


def test_turns_are_a_pure_function_of_the_clip() -> None:
    config = PromptConfig(template="", instructions=["A?", "B?", "C?"], per_clip=2)
    metadata = {"language": "german", "kind": "phrase", "transcript": "x"}
    turns = [r.turn for r in requests(config, TASKS, "key", metadata)]
    assert turns == [r.turn for r in requests(config, TASKS, "key", metadata)]
    assert len(turns) == len(set(turns)) == 3 and turns[-1] == "task-language"  # no gender known, no digits spoken
    half = PromptConfig(template="", instructions=["A?"], per_clip=0.5)
    assert 70 < sum(len(list(requests(half, {}, f"k{i}", {}))) for i in range(200)) < 130
    pool = {r.question for i in range(40) for r in requests(config, {}, f"k{i}", {})}
    assert pool == {"A?", "B?", "C?"}
