"""The HTTP client against a misbehaving server: no answer lost, doubled or mixed up, and the key never shown."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechkd.core.errors import InputError
from speechkd.data.columns.signals import SignalsConfig, decode
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.teachers.base import Answer, Clip, Request
from speechkd.teachers.hf_local import HfLocalConfig, HfLocalTeacher
from speechkd.teachers.openai_http import OpenAIHttpConfig, OpenAIHttpTeacher
from tests.teachers.endpoint import Call, Endpoint, Reply, chat, error, scripted

ROOT = Path(__file__).parents[2]
CANARY = "sk-canary-5f1e9c"


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    """The product's template with the stand-in's tokenizer."""
    return Prompt(
        (ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8").rstrip("\n"), load_tokenizer(str(ROOT / "standins/llm"))
    )


def asked(count: int) -> list[Request]:
    return [Request(f"c{i}", "open-0", f"Question {i}?", {"language": "german", "n": i}) for i in range(count)]


def echo(body: Any) -> Reply:
    """An answer that only its own question can have."""
    return chat("re " + re.findall(r"Question (\d+)", body["messages"][0]["content"])[0])


def teacher(endpoint: Endpoint | str, prompt: Prompt, **changes: Any) -> OpenAIHttpTeacher:
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    settings = {"url": url, "model": "tiny", "fields": ["language", "n"], "timeout_s": 30.0, "patience_s": 60.0, "concurrency": 8}
    return OpenAIHttpTeacher(OpenAIHttpConfig.model_validate(settings | changes), prompt)


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechkd.teachers.calls.FIRST_WAIT_S", 0.02)


def test_answers_come_in_request_order_within_the_concurrency(prompt: Prompt) -> None:
    def slow(body: Any) -> Reply:
        reply = echo(body)
        reply.delay = 0.01
        return reply

    with scripted(slow, ["tiny"]) as endpoint:
        answers = teacher(endpoint, prompt).answer(asked(60))
    assert [a.text for a in answers] == [f"re {i}" for i in range(60)]
    assert all(a.stop == "eos" and a.tokens == prompt.answer(a.text) and a.prompt_tokens > 5 for a in answers)
    assert len(endpoint.calls) == 60 and 2 <= endpoint.most_open <= 8
    bodies = [call.json() for call in endpoint.calls]
    assert all(body["temperature"] == 0 and body["model"] == "tiny" for body in bodies)
    sent = {body["messages"][0]["content"] for body in bodies}
    assert sent == {prompt.message(f"Question {i}?", json.dumps({"language": "german", "n": i})) for i in range(60)}


def test_what_shares_a_prefix_goes_out_together(prompt: Prompt) -> None:
    requests = [Request(f"c{i}", "open-0", ("What is said?", "Who speaks?")[i % 2], {"n": i}) for i in range(20)]
    with scripted(lambda body: chat("x"), ["tiny"]) as endpoint:
        teacher(endpoint, prompt, concurrency=1).answer(requests)
    firsts = [call.json()["messages"][0]["content"].split("?")[0] for call in endpoint.calls]
    assert firsts == ["What is said"] * 10 + ["Who speaks"] * 10


FAULTS: dict[str, Callable[[Reply], Reply]] = {
    "429 with Retry-After": lambda reply: error(429, "slow down", {"Retry-After": "0.05"}),
    "500": lambda reply: error(500, "oops"),
    "cut body": lambda reply: Reply(reply.body, keep=20),
    "no reply in time": lambda reply: Reply(reply.body, delay=60),
    "not JSON": lambda reply: Reply(b"<html>busy</html>"),
    "no choices": lambda reply: Reply(b'{"choices": []}'),
    "another call's reply": lambda reply: Reply(chat("re 999").body, headers={"X-Request-Id": "not-yours"}),
    "garbled compression": lambda reply: Reply(reply.body, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_costs_one_more_call_and_no_answer(name: str, prompt: Prompt) -> None:
    failed: set[str] = set()

    def once(body: Any) -> Reply:
        message = body["messages"][0]["content"]
        if int(re.findall(r"Question (\d+)", message)[0]) % 3 or message in failed:
            return echo(body)
        failed.add(message)
        return FAULTS[name](echo(body))

    with scripted(once, ["tiny"]) as endpoint:
        late = name == "no reply in time"
        answers = teacher(endpoint, prompt, timeout_s=1.5 if late else 30).answer(asked(12))
    assert [a.text for a in answers] == [f"re {i}" for i in range(12)]
    assert len(endpoint.calls) == 16 or late and len(endpoint.calls) > 16, "a busy machine may be late by itself"


def test_a_reply_sent_twice_is_never_the_next_calls_answer(prompt: Prompt) -> None:
    """On a kept connection the second copy would be read as the reply to whatever is asked next."""

    def twice(body: Any) -> Reply:
        reply = echo(body)
        reply.copies = 2
        return reply

    with scripted(twice, ["tiny"]) as endpoint:
        answers = teacher(endpoint, prompt, concurrency=2).answer(asked(40))
    assert [a.text for a in answers] == [f"re {i}" for i in range(40)]


def test_what_cannot_be_answered_is_a_row_with_a_reason(prompt: Prompt) -> None:
    def answer(body: Any) -> Reply:
        number = int(re.findall(r"Question (\d+)", body["messages"][0]["content"])[0])
        wrong = {0: error(400, "too long a prompt"), 1: error(500, "crashed"), 2: chat("and then", "length"), 3: chat("", "stop")}
        return wrong.get(number) or (chat("no", "content_filter") if number == 4 else echo(body))

    with scripted(answer, ["tiny"]) as endpoint:
        answers = teacher(endpoint, prompt, retries=2).answer(asked(8))
    assert [a.stop for a in answers] == ["error", "error", "length", "error", "error", "eos", "eos", "eos"]
    assert "400 too long a prompt" in answers[0].reason and "500 crashed (after 3 calls)" in answers[1].reason
    assert answers[2].reason and answers[2].tokens == prompt.answer("and then", ended=False) and prompt.end_of_turn not in answers[2].tokens
    assert "empty" in answers[3].reason and "content_filter" in answers[4].reason
    assert all(not a.reason for a in answers[5:])


def test_a_server_that_goes_away_stops_the_stage_and_makes_no_rows(prompt: Prompt) -> None:
    given: list[str] = []
    with scripted(echo, ["tiny"]) as endpoint:
        one = teacher(endpoint, prompt, patience_s=0.5, concurrency=1)
        stream = one.stream(asked(5), ())
        given += [answer.text for _, answer in next(stream)]
    with pytest.raises(ConnectionError, match="no answer from the teacher's server"):
        given += [answer.text for batch in stream for _, answer in batch]
    assert given and set(given) <= {f"re {i}" for i in range(5)}


def test_a_slot_asks_on_only_when_its_answer_is_committed(prompt: Prompt) -> None:
    with scripted(echo, ["tiny"]) as endpoint:
        stream = teacher(endpoint, prompt, concurrency=3).stream(asked(30), {0, 1})
        taken = 0
        for batch in stream:
            taken += len(batch)
            assert len(endpoint.calls) <= taken + 3
    assert taken == 28 and len(endpoint.calls) == 28


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"model": "tyny"}, ["tyny", "did you mean `tiny`", "other"]),
        ({"key_env": "SPEECHKD_TEST_ABSENT"}, ["`SPEECHKD_TEST_ABSENT` is not set", "key_env"]),
        ({"url": "http://127.0.0.1:1/v1"}, ["cannot reach", "127.0.0.1:1"]),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], parts: list[str], prompt: Prompt) -> None:
    with scripted(echo, ["tiny", "other"]) as endpoint, pytest.raises(InputError) as caught:
        teacher(endpoint, prompt, **changes)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize(
    "changes",
    [{"key_env": CANARY}, {"url": f"http://me:{CANARY}@host/v1"}, {"url": f"https://host/v1?key={CANARY}"}, {"url": "file:///etc/x"}],
)
def test_a_key_in_the_recipe_is_refused_without_repeating_it(changes: dict[str, str]) -> None:
    from speechkd.core.config import build

    with pytest.raises(InputError) as caught:
        build(OpenAIHttpConfig, {"url": "http://host/v1", "model": "m", "fields": [], **changes}, "recipe.yaml")
    assert CANARY not in str(caught.value) and next(iter(changes)) in str(caught.value)


def test_the_key_is_sent_and_never_told(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that repeats the key in every error, at the most talkative log level: rows, errors and tracebacks hold a mask."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SPEECHKD_TEST_KEY", CANARY)
    shown: list[str] = []

    def answer(body: Any) -> Reply:
        if "Question 0?" in body["messages"][0]["content"]:
            return error(400, f"key {CANARY} may not ask this")
        if "Question 1?" in body["messages"][0]["content"]:
            return error(503, "x" * 190 + f"{CANARY} is over quota")  # the text is cut in the middle of the key
        return echo(body)

    with scripted(answer, ["tiny"]) as endpoint:
        one = teacher(endpoint, prompt, key_env="SPEECHKD_TEST_KEY", retries=1)
        shown += [repr(a) for a in one.answer(asked(4))]
        shown += [repr(one.config), repr(vars(one)), str(one.config.model_dump())]
    assert endpoint.calls and all(call.headers["authorization"] == f"Bearer {CANARY}" for call in endpoint.calls)
    with scripted(lambda body: error(401, f"no such key: {CANARY}"), ["tiny"]) as endpoint:
        try:
            teacher(endpoint, prompt, key_env="SPEECHKD_TEST_KEY").answer(asked(1))
        except InputError as problem:
            shown += ["".join(traceback.format_exception(problem))]
    assert any("refuses the key of `SPEECHKD_TEST_KEY`" in text and "***" in text for text in shown)
    assert "sk-can" not in "".join(shown)
    everything = "\n".join(shown) + caplog.text + "".join(capsys.readouterr())
    assert CANARY not in everything, [line for line in everything.splitlines() if CANARY in line]


def refusal_of(work: Callable[[], object]) -> str:
    """The traceback of `work`, with every exception that led to its last one."""
    with pytest.raises(Exception) as raised:
        work()
    chain: list[BaseException] = [raised.value]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    return "".join("".join(traceback.format_exception(problem, chain=False)) for problem in chain)


def test_the_key_is_in_no_traceback(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the run (a refusal, a fault of our own, a server that dies, a key that is none), the key that was sent is not shown."""
    monkeypatch.setenv("SPEECHKD_TEST_KEY", CANARY)
    keyed = {"key_env": "SPEECHKD_TEST_KEY", "patience_s": 0.1, "retries": 0}
    with scripted(lambda body: error(401, f"no such key: {CANARY}"), ["tiny"]) as endpoint:
        refused = refusal_of(lambda: teacher(endpoint, prompt, **keyed).answer(asked(1)))
        assert endpoint.calls[-1].headers["authorization"] == f"Bearer {CANARY}"
    with scripted(lambda body: chat(f"your key is {CANARY}"), ["tiny"]) as endpoint, monkeypatch.context() as broken:
        one = teacher(endpoint, prompt, **keyed)

        def fault(text: str, ended: bool = True) -> list[int]:
            raise RuntimeError(f"cannot tokenize {text!r}")

        broken.setattr(prompt, "answer", fault)
        faulty = refusal_of(lambda: one.answer(asked(1)))
    away = refusal_of(lambda: one.answer(asked(1)))
    monkeypatch.setenv("SPEECHKD_TEST_KEY", f"{CANARY}\nX-Other: 1")
    broken_key = refusal_of(lambda: teacher(endpoint, prompt, **keyed))
    assert "401" in refused and "your key is ***" in faulty and "RuntimeError" in faulty
    assert "ConnectionError" in away and "line break" in broken_key
    assert all("Traceback" in text and "sk-can" not in text for text in (refused, faulty, away, broken_key))


def test_redirects_are_not_followed(prompt: Prompt) -> None:
    with scripted(echo, ["tiny"]) as other:
        with scripted(lambda body: Reply(status=307, headers={"Location": other.url + "/chat/completions"}), ["tiny"]) as endpoint:
            with pytest.raises(InputError, match="307"):
                teacher(endpoint, prompt).answer(asked(1))
    assert not other.calls


def test_a_server_that_hears_is_sent_the_clip_itself(prompt: Prompt) -> None:
    """Inline, never as an address, where others read metadata; sample for sample; what has no clip is not asked."""
    wave = (np.random.default_rng(0).integers(-9000, 9000, 1600) / 32768).astype(np.float32)
    request = Request("c0", "open-0", "What is said?", {"transcript": "a secret"}, clip=Clip(1600, lambda: wave))
    with scripted(lambda body: chat("a tone"), ["tiny"]) as endpoint:
        one = teacher(endpoint, prompt, audio=True, fields=[])
        assert one.accepts(request) and not one.accepts(asked(1)[0]) and not one.accepts(replace(request, turn="written"))
        [found] = one.answer([request])
        [call] = endpoint.calls
    before, sound, *after = call.json()["messages"][0]["content"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["input_audio"]["data"])), dtype="float32")
    assert sound["type"] == "input_audio" and sound["input_audio"]["format"] == "wav" and rate == 16_000 and np.array_equal(samples, wave)
    text = "".join(part["text"] for part in (before, *after))
    assert text == prompt.message("What is said?", "") and before["text"].endswith("<AUDIO>") and "secret" not in str(call.json())
    assert (found.text, found.stop) == ("a tone", "eos")
    for wrong in ({"fields": ["n"]}, {"api": "completions"}, {"signals": {"topk": {"k": 8}}}):
        with pytest.raises(ValueError, match="`audio: true` sends the clip in a chat message and nothing else"):
            OpenAIHttpConfig.model_validate({"url": "http://h/v1", "model": "m", "fields": [], "audio": True, **wrong})


def vllm_scores(model: Any, body: Any) -> Reply:
    """What vLLM answers to a completion request with `prompt_logprobs`: the K best of each position and the token itself."""
    ids = torch.tensor([body["prompt"]])
    with torch.no_grad():
        logp_SV = model(input_ids=ids).logits[0].float().log_softmax(-1)
    entries: list[dict[str, Any] | None] = [None]
    for position, token in enumerate(body["prompt"][1:]):
        best = logp_SV[position].topk(body["prompt_logprobs"]).indices.tolist()
        entries.append({str(i): {"logprob": float(logp_SV[position, i]), "rank": 1, "decoded_token": "?"} for i in [*best, token]})
    return Reply(json.dumps({"choices": [{"text": "x", "finish_reason": "length", "prompt_logprobs": entries}]}).encode())


def test_served_scores_are_those_of_the_model_itself(prompt: Prompt) -> None:
    """The stored bytes decode to what `hf_local` computes: same ids, log-probs and tail, row by row."""
    model = str(ROOT / "standins/llm")
    signals = {"topk": {"k": 8, "bits": 32}}
    settings = {"model": model, "fields": ["language", "n"], "dtype": "float32", "signals": signals}
    local = HfLocalTeacher(HfLocalConfig.model_validate(settings), prompt)
    requests = asked(5)
    answers = [Answer(text, prompt.answer(text), 9, "eos") for text in ("german", "drei sieben", "a man", "x")] + [
        Answer("", [], 9, "error", "no")
    ]

    def answer(body: Any) -> Reply:
        return vllm_scores(local.model, body)

    with scripted(answer, ["tiny"]) as endpoint:
        width = local.config.output_width()
        served = teacher(endpoint, prompt, signals=signals, vocab_size=width).score(requests, answers)
    assert len(endpoint.calls) == 5, "a probe and one call an answer"
    for mine, truth, reply in zip(served, local.score(requests, answers), answers, strict=True):
        if reply.stop == "error":
            assert mine == {}
            continue
        store = SignalsConfig.model_validate(signals)
        one, other = (decode(store, ["topk"], found, len(reply.tokens), width) for found in (mine, truth))
        assert torch.equal(one.ids_TK, other.ids_TK)
        torch.testing.assert_close(one.logp_TK, other.logp_TK, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(one.tail_logp_T.exp(), other.tail_logp_T.exp(), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "answer, part",
    [
        (lambda body: chat("x"), "no prompt_logprobs"),
        (lambda body: error(400, "Requested prompt logprobs of 8, which is greater than max allowed: 5"), "greater than max allowed: 5"),
    ],
)
def test_a_server_without_scores_is_one_clear_line(answer: Any, part: str, prompt: Prompt) -> None:
    with scripted(answer, ["tiny"]) as endpoint, pytest.raises(InputError) as caught:
        teacher(endpoint, prompt, signals={"topk": {"k": 8}})
    assert part in str(caught.value) and "--max-logprobs 8" in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_server_cannot_give_is_refused_in_the_recipe() -> None:
    with pytest.raises(ValueError, match="temperature must be 1"):
        OpenAIHttpConfig.model_validate({"url": "http://h/v1", "model": "m", "fields": [], "signals": {"topk": {"k": 8, "temperature": 2}}})


def test_completions_send_the_students_own_prompt(prompt: Prompt) -> None:
    def answer(body: Any) -> Reply:
        return Reply(json.dumps({"choices": [{"text": " re 1 ", "finish_reason": "stop"}]}).encode())

    with scripted(answer, ["tiny"]) as endpoint:
        [found] = teacher(endpoint, prompt, api="completions", seed=3, top_p=0.9).answer(asked(1))
    body = endpoint.calls[0].json()
    assert body["prompt"] == prompt.teacher("Question 0?", '{"language": "german", "n": 0}') and endpoint.calls[0].path == "/v1/completions"
    assert found.text == "re 1" and (body["seed"], body["top_p"], body["max_tokens"]) == (3, 0.9, 256)


def test_what_failed_in_an_outage_is_not_held_against_a_request(prompt: Prompt) -> None:
    """More failures than `retries` while the server is away, then one real one each: not a row is lost."""
    away, seen = False, Counter[str]()

    async def handle(call: Call) -> Reply:
        nonlocal away
        seen[call.method] += 1
        if call.method == "POST":
            away = 10 < seen["POST"] < 31
        if away:
            return error(502, "bad gateway")
        if call.method == "GET":
            return Reply(b"{}")
        asked_for = call.json()["messages"][0]["content"]
        seen[asked_for] += 1
        return error(500, "oops") if seen["POST"] > 31 and seen[asked_for] == 1 else echo(call.json())

    with Endpoint(handle) as endpoint:
        answers = teacher(endpoint, prompt, retries=2, concurrency=4).answer(asked(30))
    assert [(a.text, a.stop) for a in answers] == [(f"re {i}", "eos") for i in range(30)] and seen["POST"] > 65


def test_a_gateway_before_a_dead_server_makes_no_rows(prompt: Prompt) -> None:
    """While the server restarts, its gateway answers every call, health checks too, with 502: far more often than `retries`."""
    calls = 0

    async def handle(call: Call) -> Reply:
        nonlocal calls
        calls += call.method == "POST"
        if 10 < calls < 34:
            return error(502, "bad gateway")
        return Reply(b"{}") if call.method == "GET" else echo(call.json())

    with Endpoint(handle) as endpoint:
        answers = teacher(endpoint, prompt, retries=2, concurrency=4).answer(asked(30))
    assert [a.text for a in answers] == [f"re {i}" for i in range(30)] and calls > 50
