"""`speechkd teach` on a server: journal, retries of failed rows, two writers, bad input; on text-only samples, which need no audio."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from speechkd import cli
from speechkd.core.errors import InputError
from speechkd.recipe import load_recipe
from speechkd.stages.check import check
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import open_train_sources
from speechkd.stages.shard import shard
from speechkd.stages.teach import teach
from speechkd.stages.teach_plan import plan_teaching
from speechkd.stages.train import _describe
from speechkd.tracking.journal import JOURNAL, Journal
from speechkd.tracking.mlflow_sender import sync
from tests.data.corpus import write_card
from tests.teachers.endpoint import Reply, chat, error, scripted
from tests.tracking.store import Store

ROOT = Path(__file__).parents[2]
Make = Callable[..., Path]
CANARY = "sk-canary-20d7b3"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 text-only samples in 3 shards."""
    folder = tmp_path_factory.mktemp("room")
    rows = [{"id": f"c{i:02d}", "part": "train", "transcript": f"word {i}", "language": "german"} for i in range(30)]
    tasks = {
        "language": {"instruction": "What language is spoken?", "field": "language", "kind": "choice", "choices": ["german", "french"]}
    }
    shard(write_card(folder, rows, shard_samples=10, tasks=tasks, fields={}), folder / "data", quiet=True)
    return folder


@pytest.fixture
def recipe(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The embedded recipe with a server as its teacher; each test's own `revision` gives it its own column."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("speechkd.teachers.calls.FIRST_WAIT_S", 0.02)

    def make(url: str, **changes: Any) -> Path:
        data = yaml.safe_load((ROOT / "pipelines/meta_prompt_kd.yaml").read_text(encoding="utf-8"))
        data["data"] = {"root": str(room / "data"), "corpora": [{"card": str(room / "card.yaml")}]}
        settings = {"backend": "openai_http", "url": url, "model": "tiny", "fields": ["language", "transcript"], "timeout_s": 5.0}
        data["teachers"]["kd"] = settings | {"revision": tmp_path.name, "concurrency": 4, "retries": 1} | changes
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return make


def word(body: Any) -> int:
    return int(re.findall(r"word (\d+)", body["messages"][0]["content"])[0])


def test_failed_and_cut_answers_are_rows_and_are_asked_again_on_request(recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    healed = False

    def answer(body: Any) -> Reply:
        if not healed and word(body) % 10 == 3:
            return error(400, "no")
        return chat(f"it is {word(body)}", "length" if not healed and word(body) == 14 else "stop")

    with scripted(answer, ["tiny"]) as endpoint:
        loaded = load_recipe(recipe(endpoint.url))
        [column] = teach(loaded)
        assert column is not None and len(endpoint.calls) == 60
        totals = column.manifest["totals"]
        assert (totals["stop_error"], totals["stop_length"], totals["stop_eos"]) == (6, 2, 52)
        assert "6 failed and 2 cut answers of 60" in capsys.readouterr().err
        failed = [column.read(row) for row, stop in enumerate(column.table["stop"].to_pylist()) if stop == "error"]
        assert all(turn.reason == "400 no" and not turn.tokens for turn in failed)
        healed = True
        [again] = teach(loaded)
        assert again is not None and again.digest == column.digest and len(endpoint.calls) == 60, "nothing is retried unasked"
        [mended] = teach(loaded, retry_failed=True)
        assert mended is not None and len(endpoint.calls) == 68, "only the eight are asked again"
        assert mended.manifest["totals"]["stop_eos"] == 60 and mended.digest != column.digest and not list(mended.verify())
        assert {mended.read(row).text for row in range(60)} == {f"it is {i}" for i in range(30)}
        [last] = teach(loaded, retry_failed=True)
        assert last is not None and last.digest == mended.digest and len(endpoint.calls) == 68


def test_two_writers_share_the_work(recipe: Make) -> None:
    """Both start on every shard; each shard is done by one of them, and nothing is asked twice."""

    def slowly(body: Any) -> Reply:
        reply = chat(f"it is {word(body)}")
        reply.delay = 0.02
        return reply

    with scripted(slowly, ["tiny"]) as endpoint:
        loaded = load_recipe(recipe(endpoint.url))
        writers = [threading.Thread(target=teach, args=(loaded,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        [column] = teach(loaded)
        asked = Counter(call.json()["messages"][0]["content"] for call in endpoint.calls)
    assert column is not None and len(column) == 60 and not list(column.verify())
    assert len(asked) == 60 and set(asked.values()) == {1}


def test_where_the_server_is_changes_no_column(recipe: Make) -> None:
    with scripted(lambda body: chat("x"), ["tiny"]) as endpoint:
        [column] = teach(load_recipe(recipe(endpoint.url)))
    [same] = teach(load_recipe(recipe("http://127.0.0.1:1/v1", concurrency=9, timeout_s=1, patience_s=1)))
    assert column is not None and same is not None and same.digest == column.digest
    assert "127.0.0.1" not in json.dumps(column.manifest)


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"model": "tyny"}, ["unknown model `tyny`", "did you mean `tiny`", "/v1 lists these"]),
        ({"key_env": "SPEECHKD_TEST_ABSENT"}, ["environment variable `SPEECHKD_TEST_ABSENT` is not set"]),
        ({"url": "http://127.0.0.1:1/v1"}, ["cannot reach the teacher's server", "http://127.0.0.1:1/v1"]),
        ({"key_env": CANARY}, ["key_env", "never the key itself"]),
    ],
)
def test_bad_input(
    changes: dict[str, str], parts: list[str], recipe: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted(lambda body: chat("x"), ["tiny"]) as endpoint:
        path = recipe(**{"url": endpoint.url, **changes})
        monkeypatch.setattr("sys.argv", ["speechkd", "teach", str(path)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    message = capsys.readouterr().err.strip()
    assert leaving.value.code == 2 and message.count("\n") == 0 and all(part in message for part in parts), message
    assert CANARY not in message


def test_gates_drop_by_recipe_and_say_what(recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured once; thresholds act on training alone; the page holds the worst and escapes all of it."""

    hostile = "I cannot hear audio <script>alert(1)</script>"

    def answer(body: Any) -> Reply:
        number = word(body)
        return chat(hostile if number < 4 else "french" if number < 6 else f"word {number}, in german")

    with scripted(answer, ["tiny"]) as endpoint:
        path = recipe(endpoint.url)
        strict = ["gates.drop_refusals=true", "gates.max_contradictions=0"]
        [column] = teach(load_recipe(path))
        assert column is not None
        unmeasured = load_recipe(path, strict)
        with pytest.raises(InputError, match="not measured for `gates`: run `speechkd teach`"):
            open_train_sources(unmeasured, open_prompt(unmeasured.prompt, unmeasured.student.llm))
        teach(unmeasured)
        calls = len(endpoint.calls)
        assert "kept 48 of 60 answers; dropped: failed 0, cut 0, refusal 8, contradiction 4" in capsys.readouterr().err
        [train_source] = open_train_sources(unmeasured, open_prompt(unmeasured.prompt, unmeasured.student.llm))
        assert train_source.reader.column is not None
        texts = [train_source.reader.column.read(int(row)).text for row in train_source.plan_source.row_N]
        assert len(texts) == 48 and all("german" in text for text in texts)
        [plain] = open_train_sources(load_recipe(path), open_prompt(unmeasured.prompt, unmeasured.student.llm))
        assert len(plain.plan_source.shard_N) == 60 and plain.plan_source.content_digest() != train_source.plan_source.content_digest()
        looser = load_recipe(path, ["gates.drop_refusals=true"])
        [more] = open_train_sources(looser, open_prompt(looser.prompt, looser.student.llm))
        assert len(more.plan_source.shard_N) == 52 and calls == len(endpoint.calls) == 60, "other thresholds ask nothing"
        none = load_recipe(path, ["gates.min_words=50"])
        with pytest.raises(InputError, match="the gates drop every answer"):
            open_train_sources(none, open_prompt(none.prompt, none.student.llm))
    page = (column.root / "answers.html").read_text(encoding="utf-8")
    assert "refusal" in page and "&lt;script&gt;" in page and "<script>" not in page and "no threshold set" in page
    assert load_recipe(path).digest() != unmeasured.digest() != looser.digest()


def test_the_key_is_in_no_file_and_on_no_screen(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Rows with a reason, journal, spec, manifest, the run's parameters for MLflow, logs; the server repeats the key wherever it can."""
    caplog.set_level("DEBUG")
    monkeypatch.setenv("SPEECHKD_TEST_KEY", CANARY)
    with scripted(lambda body: error(400, f"{CANARY} may not") if word(body) % 2 else chat("x"), ["tiny"]) as endpoint:
        loaded = load_recipe(recipe(endpoint.url, key_env="SPEECHKD_TEST_KEY"))
        [column] = teach(loaded)
        assert {call.headers["authorization"] for call in endpoint.calls} == {f"Bearer {CANARY}"}
    assert column is not None and column.manifest["totals"]["stop_error"] == 30
    run = tmp_path / "run"
    journal = Journal(run / JOURNAL)
    _describe(journal, run, loaded, open_train_sources(loaded, open_prompt(loaded.prompt, loaded.student.llm)))
    journal.close()
    store = Store(tmp_path / "mlflow.db")
    sync(run, store.uri, "tests")
    [(run_id, *_)] = store.runs(run.name)
    params = store.params(run_id)
    assert params["teachers.kd.key_env"] == "SPEECHKD_TEST_KEY" and store.tags(run_id)["recipe"] == loaded.name
    assert CANARY not in str([params, store.tags(run_id)])
    written = [path for folder in (column.root, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 12 and any(b"*** may not" in path.read_bytes() for path in written)
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    assert CANARY not in "".join(capsys.readouterr()) + caplog.text


def test_a_damaged_column_is_made_again_and_only_lost_answers_are_asked_for(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lost file by the same command, a flipped byte with --repair; a column without its manifest is never published with one."""
    with scripted(lambda body: chat(f"it is {word(body)}"), ["tiny"]) as endpoint:
        path = recipe(endpoint.url)
        [column] = teach(load_recipe(path))
        assert column is not None
        root = Path(str(column.root))
        before = {name: (root / name).read_bytes() for name in [*column.files.entries, "manifest.json"]}

        def flip(name: str, at: int) -> None:
            data = bytearray(before[name])
            data[at] ^= 1
            (root / name).write_bytes(data)

        def whole() -> bool:
            return {name: (root / name).read_bytes() for name in before} == before

        response = column.rows.of_shard(0)["offset"][0] + 5
        for name, at in (("000000.tar", response), ("000001.parquet", 40), ("index.parquet", 40), ("spec.json", 40)):
            flip(name, at)
        for journal in (root / "answers").glob("*.jsonl"):
            journal.unlink()
        assert check(column.version) == 1
        assert f"repair: `speechkd teach RECIPE --repair`, with the recipe of {column.name}" in capsys.readouterr().out
        monkeypatch.setattr("sys.argv", ["speechkd", "teach", str(path), "--repair"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0 and whole() and check(column.version) == 0
        assert "is whole again, as it was" in capsys.readouterr().err
        assert 60 < len(endpoint.calls) <= 60 + 2 + 20, "the damaged tar's other answers are not asked for; those without an index are"
        (root / "000002.tar").unlink()
        teach(load_recipe(path))
        assert whole()
        flip("000000.tar", response)
        (root / "manifest.json").unlink()
        teach(load_recipe(path))
        assert whole()


def test_a_dry_run_counts_what_would_be_asked_and_changes_nothing(recipe: Make, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No server is there; then a third is answered, one of it badly; then the whole."""

    def planned(path: Path, *sets: str) -> dict[str, Any]:
        before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in room.rglob("*")}
        assert plan_teaching(load_recipe(path, list(sets)), as_json=True) == 0
        assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in room.rglob("*")} == before
        [plan] = json.loads(capsys.readouterr().out)["teachers"]
        return plan

    def states(plan: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(plan[name] for name in ("to_do", "done", "failed", "shards_to_do"))

    nowhere = recipe("http://127.0.0.1:9/v1")
    first = planned(nowhere)
    turns = first["to_do"]
    assert states(first) == (turns, 0, 0, [0, 1, 2]) and turns >= 30 and first["longest_prompt"] > 10
    asked = []

    def answer(body: Any) -> Reply:
        asked.append(body)
        return error(400, "no") if 'word 3"' in str(body["messages"]) else chat("german")

    with scripted(answer, ["tiny"]) as endpoint:
        path = recipe(endpoint.url)
        teach(load_recipe(path), partition=(0, 3))
        part = planned(path)
        assert part["shards_to_do"] == [1, 2] and part["to_do"] + part["done"] + part["failed"] == turns
        assert part["done"] + part["failed"] == len(asked) and part["to_do"] == turns - len(asked)
        teach(load_recipe(path))
        assert len(asked) == turns and states(planned(path)) == (0, turns - part["failed"], part["failed"], [])
    assert part["failed"] == sum('word 3"' in str(body["messages"]) for body in asked) > 0
    with pytest.raises(InputError, match="unknown field `langage`.*did you mean `language`"):
        planned(nowhere, "teachers.kd.fields=[langage]")
    assert plan_teaching(load_recipe(path)) == 0
    assert f"teach       kd on tones: 0 turns to do, {turns - part['failed']} done, {part['failed']} failed\n" in capsys.readouterr().out
