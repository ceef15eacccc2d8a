"""A real server, `transformers serve`, behind a proxy with seeded faults; server and client are killed. Nothing lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
import yaml

from speechkd.data.shards.index import open_shards
from speechkd.stages.shard import shard
from tests.data.corpus import write_card
from tests.teachers.endpoint import FaultyProxy

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
CANARY = "sk-canary-77aa01"
SAMPLES, CONCURRENCY, TIMEOUT_S = 2000, 16, 6.0
CLIENT_KILLS, SERVER_KILL = (400, 900, 1300), 1600
"""answers that the server has given when the axe falls"""


def free_port() -> int:
    with closing(socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The real one, with the stand-in LLM, ready."""
    words = [str(Path(sys.executable).with_name("transformers")), "serve", "standins/llm", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*words, "--device", "cpu"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: healthy(port) or process.poll() is not None, 300)
        assert process.poll() is None, "the server did not start"
        yield process
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:  # noqa: S310  (loopback)
            return bool(reply.status == 200)
    except (URLError, OSError):
        return False


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


class ProcessList:
    """Every command line of the machine (`ps`), looked at five times a second while inside; and whether `client` holds the key at all."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> ProcessList:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.seen |= {" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}

    def holding(self, text: str) -> list[str]:
        return [line for line in self.seen if text in line]


def test_the_process_list_would_show_a_key() -> None:
    """What the long test below relies on: a key that is an argument is seen."""
    with ProcessList() as listed, subprocess.Popen([sys.executable, "-c", "input()", CANARY], stdin=subprocess.PIPE) as careless:
        wait_for(lambda: bool(listed.holding(CANARY)), 20)
        careless.communicate(b"\n")


def test_two_thousand_samples_through_kills_and_faults(tmp_path: Path) -> None:
    languages = ["english", "german", "spanish", "french", "finnish", "turkish"]
    rows = [{"id": f"c{i:04d}", "part": "train", "transcript": f"word {i}", "language": languages[i % 6]} for i in range(SAMPLES)]
    task = {"instruction": "What language is spoken?", "field": "language", "kind": "choice", "choices": languages}
    data = shard(write_card(tmp_path, rows, shard_samples=500, tasks={"language": task}, fields={}), tmp_path / "data", quiet=True)
    port = free_port()
    logs: list[Path] = []
    extra_bound, began = 0, time.monotonic()
    with ProcessList() as listed, FaultyProxy(port, seed=7, share=0.06, too_late_s=TIMEOUT_S) as proxy, server(port) as first:
        recipe = write_recipe(tmp_path, proxy.url)
        for number, point in enumerate([*CLIENT_KILLS, None]):
            log = (tmp_path / f"log-{number}.txt").open("wb")
            words = [sys.executable, "-m", "speechkd", "teach", str(recipe)]
            environment = {**os.environ, "SPEECHKD_TEST_KEY": CANARY}
            client = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)
            logs.append(Path(log.name))
            if point is not None:
                wait_for(lambda: proxy.answered >= point or client.poll() is not None, 600)
                assert psutil.Process(client.pid).environ()["SPEECHKD_TEST_KEY"] == CANARY
                client.send_signal(signal.SIGKILL)
                client.wait()
                extra_bound += CONCURRENCY
                continue
            wait_for(lambda: proxy.answered >= SERVER_KILL or client.poll() is not None, 600)
            first.kill()
            first.wait()
            extra_bound += CONCURRENCY
            with server(port):
                assert client.wait(600) == 0, logs[-1].read_text()
    shards = open_shards(data)
    [name] = shards.column_names()
    column = shards.column(name)
    assert len(column) == SAMPLES and column.manifest["totals"]["stop_eos"] == SAMPLES and not list(column.verify())
    right = sum(column.read(row).text == rows[row]["language"] for row in range(SAMPLES))
    assert right >= 0.95 * SAMPLES, "each answer is the answer to its own sample"
    extra = sum(proxy.sent.values()) - proxy.wasted - SAMPLES
    seconds, calls = time.monotonic() - began, sum(proxy.sent.values())
    print(f"{seconds:.0f} s; server calls {calls}, faults {dict(proxy.faults)}, lost to them {proxy.wasted}")
    print(f"extra calls {extra}, in flight at the kills at most {extra_bound}; right answers {right}")
    assert len(proxy.sent) == SAMPLES and 0 <= extra <= extra_bound
    assert all(proxy.faults[kind] > 10 for kind in proxy.KINDS)
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(everything) > 10 and not [path for path in everything if CANARY.encode() in path.read_bytes()]
    assert listed.holding("speechkd teach") and listed.holding("transformers serve") and not listed.holding(CANARY)
    assert all(call.headers["authorization"] == f"Bearer {CANARY}" for call in proxy.calls)


def write_recipe(folder: Path, url: str) -> Path:
    recipe = yaml.safe_load((ROOT / "pipelines/meta_prompt_kd.yaml").read_text(encoding="utf-8"))
    recipe["data"] = {"root": str(folder / "data"), "corpora": [{"card": str(folder / "card.yaml")}]}
    recipe["prompt"]["instructions"] = []
    recipe["teachers"]["kd"] = {
        "backend": "openai_http",
        "url": url,
        "model": "standins/llm",
        "fields": ["language", "transcript"],
        "max_new_tokens": 16,
        "key_env": "SPEECHKD_TEST_KEY",
        "concurrency": CONCURRENCY,
        "timeout_s": TIMEOUT_S,
        "patience_s": 900,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert CANARY not in json.dumps(recipe)
    return path
