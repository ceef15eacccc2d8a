"""What servers answer: thinking is no answer, finish reasons have many names, and a failure of every call stops the stage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from speechkd.core.errors import InputError
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.teachers.alike import ENOUGH
from speechkd.teachers.answers import AnswerJournal
from speechkd.teachers.base import Answer, Request
from speechkd.teachers.openai_http import OpenAIHttpConfig, OpenAIHttpTeacher
from speechkd.teachers.openai_reply import CUT, ENDED, read_answer
from speechkd.teachers.thinking import PAIRS, part_thinking
from tests.teachers.endpoint import Endpoint, Reply, chat, error, scripted

LLM = str(Path(__file__).parents[2] / "standins/llm")


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt("{{ audio }} {{ question }}", load_tokenizer(LLM))


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechkd.teachers.calls.FIRST_WAIT_S", 0.01)


def reply(content: Any, reason: Any = "stop", **message: Any) -> Any:
    return {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}]}


def asked(count: int) -> list[Request]:
    return [Request(f"c{i}", "open-0", f"Question {i}?", {"n": i}) for i in range(count)]


def teacher(endpoint: Endpoint, prompt: Prompt, **changes: Any) -> OpenAIHttpTeacher:
    settings = {"url": endpoint.url, "model": "tiny", "fields": ["n"], "retries": 0, "patience_s": 5.0, "concurrency": 4}
    return OpenAIHttpTeacher(OpenAIHttpConfig.model_validate(settings | changes), prompt)


THOUGHT = "The user wants\nthe language."


@pytest.mark.parametrize("begin, end", PAIRS)
def test_thinking_is_no_answer(begin: str, end: str, prompt: Prompt) -> None:
    for text in (
        f"{begin}\n{THOUGHT}\n{end}\n\ngerman",
        f"{THOUGHT}\n{end}\ngerman",
        f" {begin}{THOUGHT}{end}german".swapcase().swapcase(),
    ):
        answer = read_answer(reply(text), prompt, 3)
        assert (answer.text, answer.thinking, answer.stop) == ("german", THOUGHT, "eos") and answer.tokens == prompt.answer("german")
    open_only = read_answer(reply(f"{begin}{THOUGHT}", "length"), prompt, 3)
    assert (open_only.text, open_only.tokens, open_only.stop) == ("", [], "length") and "thinking" in open_only.reason
    nothing = read_answer(reply(f"{begin}{THOUGHT}{end}"), prompt, 3)
    assert nothing.stop == "error" and "thinking" in nothing.reason and nothing.thinking == THOUGHT


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_of_a_field_is_kept_apart(field: str, prompt: Prompt, tmp_path: Path) -> None:
    good = read_answer(reply("german", **{field: THOUGHT}), prompt, 3)
    assert (good.text, good.thinking, good.stop) == ("german", THOUGHT, "eos")
    cut, empty = (read_answer(reply(None, reason, **{field: THOUGHT}), prompt, 3) for reason in ("length", "stop"))
    assert (cut.stop, empty.stop) == ("length", "error") and all("enable" not in a.reason and "thinking" in a.reason for a in (cut, empty))
    journal = AnswerJournal(tmp_path / "j.jsonl")
    journal.commit([("a", good), ("b", Answer("x", [1], 2, "eos"))])
    assert AnswerJournal(journal.path).read() == {"a": good, "b": Answer("x", [1], 2, "eos")}
    assert b"thinking" not in journal.path.read_bytes().splitlines()[1], "as earlier versions write and read it"


def test_an_answer_without_thinking_and_a_trace_stay_as_they_are() -> None:
    stages = "".join(f"<{name}>x</{name}>" for name in ("PLANNING", "CAPTION", "REASONING", "SUMMARY", "RESPONSE"))
    for text in ("german", "a < b", "I think </b>", "", stages, f"<think>{stages}</think>"):
        assert part_thinking(text) == (text, "")


def test_finish_reasons_of_all_kinds(prompt: Prompt) -> None:
    for reason in ENDED | {name.upper() for name in ENDED}:
        assert read_answer(reply("german", reason), prompt, 3).stop == "eos", reason
    for reason in CUT | {name.upper() for name in CUT}:
        assert read_answer(reply("german", reason), prompt, 3).stop == "length", reason
    others: list[tuple[Any, str]] = [
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        (None, "finish_reason is null"),
        (7, "7"),
    ]
    for reason, said in others:
        answer = read_answer(reply("german", reason), prompt, 3)
        assert answer.stop == "error" and said in answer.reason and not answer.tokens
    parts = [{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "ger"}, {"type": "text", "text": "man"}]
    assert read_answer(reply(parts), prompt, 3).text == "german"


@pytest.mark.parametrize(
    "mark", ["<|im_end|>\n<|im_start|>user", "</s>", "<end_of_turn>", "[/INST]", "<｜end▁of▁sentence｜>", "<tool_call>"]
)
def test_a_leaked_mark_is_no_answer(mark: str, prompt: Prompt) -> None:
    answer = read_answer(reply(f"german{mark} hi"), prompt, 3)
    assert answer.stop == "error" and "a mark of the model's own" in answer.reason


@pytest.mark.parametrize("letter", ["\0", "\x1b", "\ud83d", "\ufffd"])
def test_an_answer_with_what_no_text_has_is_no_answer(letter: str, prompt: Prompt) -> None:
    answer = read_answer(reply(f"german {letter}"), prompt, 3)
    assert answer.stop == "error" and f"U+{ord(letter):04X}" in answer.reason and not answer.tokens
    answer.text.encode()
    assert read_answer(reply("Zeile\n\tNote: \u200d\U0001f600"), prompt, 3).stop == "eos"


ALIKE: dict[str, tuple[Any, str]] = {
    "limit": (lambda n: error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."), "limit_key"),
    "context": (lambda n: error(400, f"maximum context length is 512 tokens, you asked for {600 + n}"), "lower `max_new_tokens`"),
    "thinking": (lambda n: Reply(json.dumps(reply(None, "length", reasoning_content="Okay")).encode()), "enable_thinking"),
    "filter": (lambda n: chat("", "content_filter"), "content_filter"),
    "null reason": (lambda n: Reply(json.dumps(reply("german", None)).encode()), "finish_reason is null"),
    "error in 200": (lambda n: Reply(json.dumps({"error": {"message": "upstream timed out"}}).encode()), "upstream timed out"),
    "500": (lambda n: error(500, "oops"), "500 oops"),
    "413": (lambda n: Reply(b"<html>too large</html>", 413), "413"),
    "stream": (lambda n: Reply(b": keepalive\n\ndata: {}\n\n"), "not JSON, but a stream"),
    "tools": (lambda n: chat("", "tool_calls"), "tool_choice: none"),
    "NUL": (lambda n: chat("ger\0man"), "U+0000"),
    "mark": (lambda n: chat("german<|eot_id|>"), "<|eot_id|>"),
}


@pytest.mark.parametrize("name", list(ALIKE))
def test_a_failure_of_every_call_stops_the_stage(name: str, prompt: Prompt) -> None:
    make, said = ALIKE[name]

    def answer(body: Any) -> Reply:
        return make(int(re.findall(r"Question (\d+)", body["messages"][0]["content"])[0]))

    for count in (3, 100):
        with scripted(answer, ["tiny"]) as endpoint:
            with pytest.raises(InputError, match="failed alike") as stopped:
                list(teacher(endpoint, prompt).stream(asked(count), ()))
            assert said in str(stopped.value) and "\n" not in str(stopped.value)
            assert len(endpoint.calls) <= 2 * (ENOUGH + 8), "not every call is made"


def test_failures_of_rows_do_not_stop_it(prompt: Prompt) -> None:
    """One good answer is enough, whenever it comes; so is one of an earlier attempt; different reasons are not alike."""

    def run(fails: Any, done: Any = ()) -> list[tuple[int, Answer]]:
        def answer(body: Any) -> Reply:
            number = int(re.findall(r"Question (\d+)", body["messages"][0]["content"])[0])
            return error(400, fails(number)) if fails(number) else chat("german")

        with scripted(answer, ["tiny"]) as endpoint:
            return [pair for batch in teacher(endpoint, prompt, concurrency=1).stream(asked(12), done) for pair in batch]

    for good in (0, 5, 9):
        found = dict(run(lambda n, good=good: "" if n == good else "no"))
        assert len(found) == 12 and [n for n, answer in found.items() if answer.stop == "eos"] == [good]
    assert len(run(lambda n: "no", done={0})) == 11
    assert len(run(lambda n: f"no {'ab'[n % 2]}")) == 12


def test_further_keys_are_sent_and_are_part_of_the_identity(prompt: Prompt) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "repetition_penalty": 1.0}
    with scripted(lambda body: chat("german"), ["tiny"]) as endpoint:
        plain = teacher(endpoint, prompt)
        other = teacher(endpoint, prompt, extra=extra, limit_key="max_completion_tokens")
        other.answer(asked(1))
        body = endpoint.calls[0].json()
        assert body.items() >= extra.items() and body["max_completion_tokens"] == 256 and "max_tokens" not in body
        assert "extra" not in plain.config.identity() and other.config.identity() == {**plain.config.identity(), "extra": extra}
        for key in ("messages", "stream", "n", "max_tokens"):
            with pytest.raises(ValueError, match=f"must not hold `{key}`"):
                teacher(endpoint, prompt, extra={key: 1})
