"""Parts outside the package: only the user's own card or recipe brings one in; data, exports and run folders never do."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path

import pytest
import soundfile
import yaml

from speechkd.core.errors import InputError
from speechkd.core.files import read_json_lines, write_json
from speechkd.core.table import OUTSIDE
from speechkd.data.shards.index import open_shards
from speechkd.data.sources import SOURCES
from speechkd.losses import LOSSES
from speechkd.models.exported import FORMAT, read_manifest
from speechkd.recipe import load_recipe
from speechkd.stages.check import check
from speechkd.stages.progress import run_state
from speechkd.stages.shard import shard
from tests.data.corpus import tone

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "pipelines/meta_prompt_kd.yaml"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for modules, on this process's path and its children's; nothing is allowed yet."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(OUTSIDE, "")
    return folder


def example(language: str, after: str) -> str:
    """The block of CONTRIBUTING.md that follows some words."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [block] = re.findall(rf"{re.escape(after)}.*?^```{language}\n(.*?)^```", text, flags=re.M | re.S)
    return str(block)


@pytest.fixture
def calls(modules: Path, tmp_path: Path) -> Path:
    """The example's card with its module, database and three recordings; one of them is no audio."""
    (modules / "my_sources.py").write_text(example("python", "as `my_sources.py` in a folder"), encoding="utf-8")
    (tmp_path / "audio").mkdir()
    for number in range(2):
        soundfile.write(tmp_path / f"audio/call {number}.wav", tone(0.3, 16_000, 300), 16_000)
    (tmp_path / "audio/call 2.wav").write_bytes(b"no audio")
    with sqlite3.connect(tmp_path / "calls.db") as database:
        database.execute("CREATE TABLE calls (file TEXT, text TEXT, agent TEXT)")
        database.executemany("INSERT INTO calls VALUES (?, ?, ?)", [(f"call {n}.wav", f"hello {n}", "Ada") for n in range(3)])
    card = tmp_path / "calls.yaml"
    card.write_text(example("yaml", "Its card:") + "quarantine_rate: 0.5\n", encoding="utf-8")
    return card


def test_the_example_is_a_source_like_any_other(calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(calls) == 0
    said = capsys.readouterr()
    assert "3 items: train 3; fields: agent 3, transcript 3" in said.out and "first 3 items: 2 samples" in said.out
    assert said.err.count("source `my_sources:Calls` is code outside speechkd") == 1
    root = shard(calls, tmp_path / "out", quiet=True)
    assert [(s.key, s.metadata["transcript"]) for s in open_shards(root).samples()] == [("call_0", "hello 0"), ("call_1", "hello 1")]
    [rejected] = read_json_lines(Path(str(root)) / "quarantine.jsonl")
    assert rejected["key"] == "call_2" and rejected["source"]["kind"] == "my_sources:Calls"


def test_nothing_but_the_users_card_or_recipe_brings_it_in(modules: Path, tmp_path: Path) -> None:
    """An export, a run folder and shards that name a module: it is not imported, and the way out is said."""
    (modules / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match=f"loss `evil:LOSS` is code outside speechkd.*set {OUTSIDE}=evil:LOSS"):
        LOSSES.get("evil:LOSS")
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    projector = {"kind": "evil:Projector"}
    export = {"format": FORMAT, "student": recipe["student"] | {"projector": projector}, "files": {}, "step": 1, "recipe_digest": ""}
    write_json(tmp_path / "export/export.json", export | {"fingerprints": {"encoder": "", "llm": ""}, "checkpoint": ""})
    with pytest.raises(InputError, match="projector `evil:Projector` is code outside speechkd"):
        read_manifest(tmp_path / "export")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(recipe | {"losses": {"mine": {"kind": "evil:LOSS"}}}))
    with pytest.raises(InputError, match="loss `evil:LOSS` is code outside speechkd"):
        run_state(tmp_path / "run")
    assert not (tmp_path / "ran").exists() and os.environ[OUTSIDE] == ""
    with pytest.raises(InputError, match="there is no `LOSS` in `evil`"):  # the same recipe, given by the user
        load_recipe(tmp_path / "run/recipe.yaml")
    assert (tmp_path / "ran").exists()


def test_published_shards_are_read_without_their_source(
    calls: Path, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shard(calls, tmp_path / "out", quiet=True)
    monkeypatch.setenv(OUTSIDE, "")
    (modules / "my_sources.py").unlink()
    shards = open_shards(root)
    assert shards.card.source["kind"] == "my_sources:Calls" and list(shards.verify()) == []


def test_a_recipe_names_a_loss_of_its_own(modules: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    sets = ["live.reader={kind: self}", "losses={mine: {kind: 'tests.losses.toys.toy_head:LOSS', teacher: reader, scale: 2}}"]
    recipe = load_recipe(RECIPE, sets)
    assert recipe.losses["mine"].needs().live == {"dense"}
    assert "loss `tests.losses.toys.toy_head:LOSS` is code outside speechkd; it runs because" in capsys.readouterr().err
    assert load_recipe(RECIPE, sets).digest() == recipe.digest() and capsys.readouterr().err == ""


def test_an_installed_distribution_offers_parts_by_entry_points(modules: Path) -> None:
    info = modules / "my_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[speechkd.sources]\ncalls = my_plugin:Calls\n")
    (modules / "my_plugin.py").write_text("from speechkd.data.sources.jsonl import JsonlSource as Calls\n")
    SOURCES.__dict__.pop("_plugins", None)  # found once a process
    try:
        with pytest.raises(InputError, match="unknown source `cals`; allowed: calls, csv.*did you mean `calls`"):
            SOURCES.get("cals")
        with pytest.raises(InputError, match="source `calls` is code outside"):
            SOURCES.get("calls")
        SOURCES.allow("calls")
        assert SOURCES.get("calls").__name__ == "JsonlSource"
    finally:
        SOURCES.__dict__.pop("_plugins", None)


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "wrong:LOSS", "there is no `LOSS` in `wrong`"),
        ("LOSS = 3", "wrong:LOSS", "`LOSS` has no `Config`"),
        ("import nothing_like_it", "wrong:LOSS", "cannot import `wrong` \\(ModuleNotFoundError: No module named 'nothing_like_it'\\)"),
        ("1 / 0", "wrong:LOSS", "cannot import `wrong` \\(ZeroDivisionError"),
        ("", "absent:LOSS", "cannot import `absent`.*PYTHONPATH"),
        ("", "os.path:join()", "unknown loss `os.path:join\\(\\)`"),
        ("", "../wrong:LOSS", "unknown loss"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(modules: Path, monkeypatch: pytest.MonkeyPatch, code: str, name: str, message: str) -> None:
    monkeypatch.delitem(__import__("sys").modules, "wrong", raising=False)
    (modules / "wrong.py").write_text(code)
    with pytest.raises(InputError, match=message) as refused:
        load_recipe(RECIPE, [f"losses={{mine: {{kind: '{name}'}}}}"])
    assert "\n" not in str(refused.value)
