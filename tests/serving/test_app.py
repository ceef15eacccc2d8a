"""A real server on loopback, asked by the `openai` package and by clients that misbehave."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from speechkd.data.audio.clips import decode_bytes, encode_flac, encode_wav
from speechkd.data.training_range import TrainingRange, unlike
from speechkd.models.exported import DistilledStudent
from speechkd.serving.app import Serving
from speechkd.serving.verify import probe_clips
from tests.serving.conftest import served

QUESTION = "Who speaks?"
CLIPS = probe_clips()


def message(wav: bytes, question: str = QUESTION) -> list[Any]:
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}
    return [{"role": "user", "content": [{"type": "text", "text": question}, sound]}]


def heard(clip_T: np.ndarray) -> np.ndarray:
    return decode_bytes(encode_wav(clip_T)).samples_TC[:, 0]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def expected(student: DistilledStudent) -> list[str]:
    return [student.answer([heard(clip)], [QUESTION], 12)[0] for clip in CLIPS]


def test_a_real_client_gets_the_students_answer(client: openai.OpenAI, expected: list[str], student: DistilledStudent) -> None:
    assert [model.id for model in client.models.list()] == ["student"]
    answer = client.chat.completions.create(model="student", messages=message(encode_wav(CLIPS[0])), logprobs=True, top_logprobs=2)
    choice, used = answer.choices[0], answer.usage
    assert choice.message.content == expected[0] and used is not None
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert used.completion_tokens == len(choice.logprobs.content) and used.total_tokens == used.prompt_tokens + used.completion_tokens
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 2 and abs(token.logprob - token.top_logprobs[0].logprob) < 1e-4  # greedy: the likeliest
    same = client.chat.completions.create(model="student", messages=message(encode_flac(CLIPS[0])))
    assert same.choices[0].message.content == expected[0]


def test_a_clip_unlike_the_trainings_is_one_line_in_the_log(student: DistilledStudent, capsys: pytest.CaptureFixture[str]) -> None:
    long = TrainingRange(seconds=(20.0, 30.0), level_db=(-80.0, 0.0), bandwidth_hz=(0.0, 8000.0))
    with served(student, Serving(model="student", default_tokens=2, trained_on=long)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        client.chat.completions.create(model="student", messages=message(encode_wav(CLIPS[0])))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("serve: ")]
    assert lines == [f"serve: {unlike(long, heard(CLIPS[0]))}"] and "lasts 1.0 s (20.0 to 30.0 s)" in lines[0]


def test_pieces_of_a_stream_are_the_answer(client: openai.OpenAI, expected: list[str]) -> None:
    for clip, text in zip(CLIPS, expected, strict=True):
        chunks = list(client.chat.completions.create(model="student", messages=message(encode_wav(clip)), stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("stop", "length")


def test_a_file_is_transcribed(client: openai.OpenAI, student: DistilledStudent, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(encode_wav(CLIPS[1]))
    with path.open("rb") as file:
        found = client.audio.transcriptions.create(model="student", file=file)
    assert found.text == student.answer([heard(CLIPS[1])], ["What is said?"], 12)[0]


def test_two_hundred_at_once_get_their_own_answers(url: str, client: openai.OpenAI, expected: list[str]) -> None:
    def ask(number: int) -> str:
        made = client.chat.completions.create(model="student", messages=message(encode_wav(CLIPS[number % len(CLIPS)])))
        return made.choices[0].message.content or ""

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    assert answers == [expected[number % len(CLIPS)] for number in range(200)]
    page = httpx2.get(f"{url}/metrics").text
    assert "speechkd_serve_batch_size_count" in page and 'status="200"' in page


BAD: dict[str, tuple[bytes, int, str]] = {
    "bad JSON": (b"{", 400, "not JSON"),
    "no sound in the sound": (json.dumps({"messages": message(b"hello, I am a text")}).encode(), 400, "cannot hear"),
    "a cut file": (json.dumps({"messages": message(encode_wav(CLIPS[0])[:5000])}).encode(), 400, "cannot hear"),
    "a long clip": (json.dumps({"messages": message(encode_flac(np.zeros(16_000 * 31, np.float32)))}).encode(), 400, "cannot hear"),
    "another model": (json.dumps({"model": "gpt", "messages": message(b"x")}).encode(), 404, "no model `gpt`"),
    "too many tokens": (json.dumps({"max_tokens": 65, "messages": message(encode_wav(CLIPS[0]))}).encode(), 400, "at most 64"),
    "a long question": (json.dumps({"messages": message(encode_wav(CLIPS[0]), "word " * 5000)}).encode(), 400, "positions"),
    "too large": (b" " * (3 << 20), 413, "larger than"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_their_status_and_a_reason(name: str, url: str) -> None:
    content, status, reason = BAD[name]
    answer = httpx2.post(f"{url}/v1/chat/completions", content=content, timeout=60)
    assert answer.status_code == status and reason in answer.json()["error"]["message"], answer.text
    assert httpx2.get(f"{url}/health").status_code == 200


def test_a_cut_connection_costs_nobody_else(url: str, client: openai.OpenAI, expected: list[str]) -> None:
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"messages": message(encode_wav(CLIPS[0])), "stream": True, "max_tokens": 60}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for sent in (body, body, body[: len(body) // 2]):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + sent)
            time.sleep(0.05)
    made = client.chat.completions.create(model="student", messages=message(encode_wav(CLIPS[0])))
    assert made.choices[0].message.content == expected[0]


def test_a_full_queue_and_a_wrong_key_are_said_at_once(student: DistilledStudent) -> None:
    with served(student, Serving(model="student", batch=1, waiting=2, key="secret")) as url:
        assert httpx2.get(f"{url}/v1/models").status_code == 401 and httpx2.get(f"{url}/health").status_code == 200
        codes: list[int] = []
        lock = threading.Lock()

        def ask(_: int) -> None:
            body = json.dumps({"messages": message(encode_wav(CLIPS[3])), "max_tokens": 40}).encode()
            answer = httpx2.post(f"{url}/v1/chat/completions", content=body, headers={"Authorization": "Bearer secret"}, timeout=120)
            with lock:
                codes.append(answer.status_code)

        with ThreadPoolExecutor(24) as pool:
            list(pool.map(ask, range(24)))
        assert set(codes) == {200, 429} and codes.count(200) >= 3
