"""Every backend of the table gives one answer per request, in order; the stand-in LLM really reads its prompt."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechkd.core.errors import DataError, InputError
from speechkd.core.types import SIGNALS
from speechkd.data.cards import Task
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.teachers import TEACHERS
from speechkd.teachers.base import Request, Teacher
from speechkd.teachers.hf_local import HfLocalTeacher
from speechkd.teachers.prompts import PromptConfig, requests
from tests.teachers.endpoint import Reply, chat, scripted
from tests.teachers.engine import package

ROOT = Path(__file__).parents[2]
LLM = str(ROOT / "standins/llm")
FIELDS = ["language", "gender", "rate", "transcript"]
SETTINGS: dict[str, dict[str, Any]] = {
    "hf_local": {"model": LLM, "fields": FIELDS, "max_new_tokens": 24, "batch_size": 8, "dtype": "float32"},
    "label": {},
    "openai_http": {"model": "standin", "fields": FIELDS, "max_new_tokens": 24},
    "self": {"model": LLM, "fields": FIELDS, "max_new_tokens": 24, "batch_size": 8, "dtype": "float32"},
    "vllm": {"model": LLM, "fields": FIELDS, "max_new_tokens": 24, "dtype": "float32"},
}
HEARING = {"hf_audio", "snapshot"}
"""They have tests of their own (test_speech_llm_teacher.py)"""
TASKS = {
    "language": Task(instruction="What language is spoken?", field="language", kind="choice"),
    "gender": Task(instruction="Is the speaker male or female?", field="gender", kind="choice"),
    "digits": Task(instruction="Which digits are spoken?", field="transcript", kind="words", when={"kind": "digits"}),
}


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    """The product's template with the stand-in's tokenizer."""
    return Prompt((ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8").rstrip("\n"), load_tokenizer(LLM))


def make(name: str, prompt: Prompt, **changes: Any) -> Teacher:
    """A backend with the settings of these tests."""
    part = TEACHERS.get(name)
    assert part.SIGNALS <= set(SIGNALS)
    return part(part.Config.model_validate({"backend": name, **SETTINGS[name], **changes}), prompt)


@contextmanager
def served(prompt: Prompt) -> Iterator[str]:
    """The stand-in LLM behind a chat endpoint that applies the model's own chat template; yields its address."""
    model = cast(HfLocalTeacher, make("hf_local", prompt))

    def answer(body: Any) -> Reply:
        ids = prompt.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        [tokens] = model._generate([list(ids)])
        ended = prompt.end_of_turn in tokens
        return chat(prompt.decode(tokens[: tokens.index(prompt.end_of_turn)] if ended else tokens), "stop" if ended else "length")

    with scripted(answer, ["standin"]) as endpoint:
        yield endpoint.url


@pytest.fixture(scope="module", params=[name for name in TEACHERS if name not in HEARING])
def teacher(request: pytest.FixtureRequest, prompt: Prompt) -> Iterator[Teacher]:
    """Each backend that reads, once."""
    if request.param == "vllm":
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(sys.modules, "vllm", package())
            yield make(request.param, prompt)
        return
    if request.param != "openai_http":
        yield make(request.param, prompt)
        return
    with served(prompt) as url:
        yield make(request.param, prompt, url=url)


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
    short = make("hf_local", prompt, max_new_tokens=2)
    open_question = next(request for request in _asked() if request.turn.startswith("open"))
    assert short.answer([open_question])[0].stop == "length"


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_a_model_is_whole_and_safe_however_it_is_spread(device_map: str | None, prompt: Prompt, tmp_path: Path) -> None:
    """Nothing is unpickled, nothing is left random; the spread teacher says what the other one says."""
    asked = [request for request in _asked() if request.turn.startswith("open")]
    alone, spread = make("hf_local", prompt), make("hf_local", prompt, device_map=device_map)
    assert [a.tokens for a in spread.answer(asked)] == [a.tokens for a in alone.answer(asked)]
    folder = Path(shutil.copytree(LLM, tmp_path / "llm"))
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match="1 missing tensors, first `model.norm.weight`"):
        make("hf_local", prompt, model=str(folder), device_map=device_map)
    torch.save(load_file(Path(LLM) / "model.safetensors"), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(InputError, match="weights are read as safetensors only"):
        make("hf_local", prompt, model=str(folder), device_map=device_map)


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


def test_a_teacher_may_answer_some_tasks_only(prompt: Prompt) -> None:
    config = TEACHERS.get("label").Config.model_validate({"backend": "label", "tasks": ["digits", "gender"]})
    assert list(config.selected_tasks(TASKS)) == ["gender", "digits"]
    with pytest.raises(InputError, match="unknown task `gendre`.*did you mean `gender`"):
        TEACHERS.get("label").Config.model_validate({"backend": "label", "tasks": ["gendre"]}).selected_tasks(TASKS)


def test_a_prompt_that_fills_the_teacher_is_an_error_and_costs_no_other_answer(prompt: Prompt) -> None:
    teacher = cast(HfLocalTeacher, make("hf_local", prompt))
    asked = _asked()[:3]
    long = [Request("long", "open-0", "What is said?", {"transcript": "zwei drei " * count}) for count in (300, 380)]
    answers = teacher.answer([asked[0], long[0], *asked[1:], long[1]])
    assert [a.tokens for a in (answers[0], *answers[2:4])] == [a.tokens for a in teacher.answer(asked)]
    for answer in (answers[1], answers[4]):
        assert answer.stop == "error" and answer.prompt_tokens > 512
        assert answer.reason == f"the prompt needs {answer.prompt_tokens} positions, the teacher has 512"
    with pytest.raises(InputError, match="512 positions, the prompt template alone needs .*prompt.template"):
        make("hf_local", Prompt("Listen well. " * 300 + "{{ question }}{{ audio }}", prompt.tokenizer))
