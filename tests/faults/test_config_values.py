"""Every key of cards and recipes given every type of YAML: accepted, or refused in one line; never another exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from speechkd.core.config import Config, build, dump_yaml, parse_yaml
from speechkd.core.errors import DataError, InputError
from speechkd.data.cards import Card, list_items, load_card, open_source
from speechkd.data.sources import SOURCES
from speechkd.losses import LOSSES
from speechkd.models.projectors import PROJECTORS
from speechkd.recipe import Recipe, load_recipe
from speechkd.teachers import TEACHERS
from tests.consistency.house import ROOT
from tests.data.raw import noise, write
from tests.faults.test_list_values import LAYOUTS, changed, places

VALUES = [
    "~", "true", "5", "-1", "1.5", ".inf", ".nan", "1e400", "9" * 30, "''", "x", "'{'", "'{text}'", "'('", "..", "/", "2024-01-02", "12:30",
    "no", "[]", "[~]", "[x, x]", "[[x]]", "{}", "{x: y}", "{1: x}", "{true: x}", "{x: {y: [z]}}", "é",
]  # fmt: skip
TAGGED = [
    "!!int x", "!!float x", "!!bool x", "!!null x", "!!timestamp x", "!!timestamp 2024-01-02", "!!binary é", "!!binary AAAA", "!!set {x}",
    "!!omap [x: y]", "!!pairs [x: y]", "!!str 5", "!!seq x", "!!map x", "!!python/name:os.x x", "&a [*a]", "&a {x: *a}", "*b", "<<: x",
    "9" * 5000, "0x" + "f" * 5000, "!x y", "!!int [1]", "{<<: 5}", "{<<: {x: y}}", "? [x]", "{[x]: y}", "{x: 1, x: 2}", "- x\n- !!int ''",
    '"a\\0b"', '"\\ud83d"', '{"\\ud83d": 1}',
]  # fmt: skip


READ = [(text, parse_yaml(f"[{text}]", "here")[0]) for text in VALUES]


def few(number: int) -> list[tuple[str, Any]]:
    """One or two of the values, others at the next place: together they are all. `make torture` tries all at each."""
    return READ[number % 15 :: 15]


def told(act: Callable[[], object], what: str) -> None:
    """Do it; an error must be one line of ours."""
    try:
        act()
    except (InputError, DataError) as error:
        said = str(error)
        assert "\n" not in said and "a list of this corpus cannot be read" not in said, f"{what}: {said}"
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error


@pytest.mark.parametrize("text", TAGGED)
def test_yaml_with_tags_and_references(text: str) -> None:
    for document in (f"a: {text}\n", f"- {text}\n", text):
        told(lambda: parse_yaml(document, "here"), document[:60])  # noqa: B023


def of_recipes() -> Iterator[dict[str, Any]]:
    """Recipes that ship, with every default written out."""
    for path in sorted((ROOT / "pipelines").glob("*.yaml")):
        yield load_recipe(path).model_dump(mode="json")


def parts() -> Iterator[tuple[str, type[Config]]]:
    """Every part that a recipe may name, with its configuration."""
    for table, word in ((LOSSES, "loss"), (PROJECTORS, "projector"), (TEACHERS, "teacher")):
        for name in table:
            yield f"{word} {name}", table.get(name).Config


def new_places(base: Any, seen: set[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Places of a recipe that none before it had, by the kinds of the blocks on the way."""
    for at in places(base):
        node, kinds = base, []
        for name in at:
            kinds.append(name if not isinstance(name, int) else 0)
            node = node[name]
            if isinstance(node, dict):
                kinds.append(node.get("kind") or node.get("backend") or "")
        if tuple(kinds) not in seen:
            seen.add(tuple(kinds))
            yield at


def whole(data: Any) -> str:
    recipe = build(Recipe, data, "r.yaml")
    return recipe.digest() + str(recipe.run_dir) + dump_yaml(recipe.model_dump(mode="json"))


def every(of_place: Callable[[int], list[tuple[str, Any]]]) -> int:
    """Try the values at every place of every recipe; the number of places."""
    seen: set[tuple[Any, ...]] = set()
    for base in of_recipes():
        whole(base)
        for number, at in enumerate(new_places(base, seen)):
            for text, value in of_place(number):
                told(lambda: whole(changed(base, at, value)), f"{base['name']}: {'.'.join(map(str, at))}: {text}")  # noqa: B023
    return len(seen)


def test_every_key_of_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert every(few) > 200


@pytest.mark.torture
def test_every_key_of_a_recipe_with_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert every(lambda number: READ) > 200


def test_every_key_of_every_part() -> None:
    """Alone: its other keys are left out, so a key with rules of its own is tried even where no recipe that ships has it."""
    for name, config in parts():
        least = {key: f.examples[0] if f.examples else "x" for key, f in config.model_fields.items() if f.default is PydanticUndefined}
        for key in config.model_fields:
            for text, value in READ:
                told(lambda: build(config, {**least, key: value}, "here"), f"{name}: {key}: {text}")  # noqa: B023


CARD: dict[str, Any] = {
    "name": "raw", "version": "v1", "text_only": None, "licence": "x", "homepage": "", "description": "", "grows": None, "shard_samples": 5,
    "quarantine_rate": 1.0, "unmatched_rate": 1.0, "fields": {"text": "transcript"}, "drop": ["mood"],
    "values": {"transcript": {"hi": "ho"}}, "constants": {"c": 1},
    "combine": {"both": ["transcript", "c"]}, "hold_out": {"test": {"share": 0.5, "by": "transcript"}, "dev": {"share": 0.1}},
    "joins": [{"file": "t.csv", "column": "id", "on": "key", "take": ["mood"], "required": False, "unused_rate": 1.0,
               "encoding": "", "delimiter": "", "quotes": True, "multiline": False, "columns": [], "skip_lines": 0, "rest": False,
               "comment": "", "pattern": "", "numbers": []}],
    "tasks": {"asr": {"instruction": "What is said?", "field": "transcript", "kind": "words", "choices": ["x"], "when": {"c": 1}},
              "own": {"instruction_field": "transcript", "field": "transcript", "kind": "choice"}},
    "audio": {"min_seconds": 0.05, "max_seconds": 30.0, "max_channels": 8, "over_long": "refuse", "whole_only": ["transcript"],
              "duration_field": "", "min_rate": 8000, "max_peak": 2.0, "max_clipped": 0.1, "max_cancelled": 0.2, "max_dc": 0.1,
              "max_zero_seconds": None},
}  # fmt: skip


def listed(data: Any, folder: Path) -> None:
    (folder / "card.yaml").write_text(dump_yaml(data), encoding="utf-8", errors="surrogatepass")
    card = load_card(folder / "card.yaml")
    assert len(card.digest) == 64
    list_items(card, open_source(card, folder), folder)


def every_of_a_card(folder: Path, of_place: Callable[[int], list[tuple[str, Any]]]) -> None:
    write(folder / "a/r.wav", noise(1, 0.2))
    (folder / "l.jsonl").write_text('{"id": "k", "audio": "r.wav", "text": "hi"}\n')
    (folder / "t.csv").write_text("id,mood\nk,calm\n")
    base = {**CARD, "source": {"kind": "jsonl", "file": "l.jsonl", "root": "a", "key_field": "id"}}
    listed(base, folder)
    assert set(Card.model_fields) == set(base)
    for number, at in enumerate(places(base)):
        for text, value in of_place(number):
            told(lambda: listed(changed(base, at, value), folder), f"{'.'.join(map(str, at))}: {text}")  # noqa: B023


def every_of_a_source(layout: str, folder: Path, of_place: Callable[[int], list[tuple[str, Any]]]) -> None:
    write(folder / "a/r.wav", noise(1, 0.2))
    row, put, source = LAYOUTS[layout]
    put(folder, row)
    config = build(SOURCES.get(source["kind"]).Config, source, "here")
    base = {"name": "raw", "version": "v1", "licence": "x", "source": config.model_dump(mode="json"), "unmatched_rate": 1.0}
    listed(base, folder)
    for number, key in enumerate(places(base["source"])):
        for text, value in of_place(number) if key else []:
            told(lambda: listed(changed(base, ("source", *key), value), folder), f"{'.'.join(map(str, key))}: {text}")  # noqa: B023


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SPEECHKD_DATA", raising=False)
    return tmp_path


def test_every_key_of_a_card(corpus: Path) -> None:
    every_of_a_card(corpus, few)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_of_a_source(layout: str, corpus: Path) -> None:
    every_of_a_source(layout, corpus, few)


@pytest.mark.torture
def test_every_key_of_a_card_with_every_value(corpus: Path) -> None:
    every_of_a_card(corpus, lambda number: READ)


@pytest.mark.torture
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_of_a_source_with_every_value(layout: str, corpus: Path) -> None:
    every_of_a_source(layout, corpus, lambda number: READ)
