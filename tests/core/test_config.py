"""YAML and command-line values are read as meant, or refused with one line that says what is wrong and where."""

from __future__ import annotations

import math
from pathlib import Path

import hypothesis.strategies
import pytest
import yaml
from hypothesis import given

from speechkd.core.config import (
    NAME_PATTERN,
    Config,
    apply_sets,
    build,
    differences,
    dump_yaml,
    merge,
    parse_yaml,
    read_extending,
    read_yaml,
)
from speechkd.core.errors import InputError


class Inner(Config):
    depth: int = 1


class Outer(Config):
    name: str = "x"
    inner: Inner = Inner()


SCALARS = {
    "007": "007", "08": "08", "00": "00", "12:30": "12:30", "1:02:03.5": "1:02:03.5", "1_000": "1_000", "1_0.5": "1_0.5", "0b11": "0b11",
    "yes": "yes", "Off": "Off", "y": "y", "2024-01-02": "2024-01-02", "2024-01-02 03:04:05": "2024-01-02 03:04:05", "=": "=", "1e": "1e",
    "0": 0, "-0": 0, "+5": 5, "-12": -12, "0o7": 7, "0x1F": 31, "1e3": 1000.0, "1E+3": 1000.0, ".5": 0.5, "-1.": -1.0, "1.5e-3": 0.0015,
    ".inf": math.inf, "-.INF": -math.inf, "true": True, "FALSE": False, "null": None, "NULL": None, "": None, "nULL": "nULL",
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    for document in (f"[{text}]" if text else "[~]", f"- {text}\n"):
        (found,) = parse_yaml(document, "here")
        assert (type(found), found) == (type(value), value)
    (found,) = apply_sets({}, [f"a={text}"]).values()
    assert (type(found), found) == (type(value), value)


@given(
    hypothesis.strategies.text("0123456789_:.+-eEoxbnN~yYaf", max_size=8)
    | hypothesis.strategies.sampled_from([*SCALARS, *"nan infinity .nan 0o18 <<".split()])
    | hypothesis.strategies.floats(allow_nan=False)
    | hypothesis.strategies.integers()
)
def test_what_is_written_is_read_back(value: object) -> None:
    written = {"a": value, str(value): [value]}
    read = parse_yaml(dump_yaml(written), "here")
    assert read == written and type(read["a"]) is type(written["a"])


def test_files_that_ship_read_as_before() -> None:
    root = Path(__file__).parents[2]
    files = [path for folder in ("shards", "pipelines", "standins") for path in (root / folder).rglob("*.yaml")]
    assert len(files) > 30
    for path in files:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        new = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        odd = [
            (key, one, other) for key, one, other in differences(old, new) if isinstance(one, (int, float)) and not isinstance(one, bool)
        ]
        assert not odd, f"{path}: {odd}"


@pytest.mark.parametrize(
    ("text", "value"), [("no", "no"), ("on", "on"), ("2024-01-02", "2024-01-02"), ("1e-3", 1e-3), ("3", 3), ("true", True), ("~", None)]
)
def test_scalars_are_what_they_look_like(text: str, value: object) -> None:
    assert parse_yaml(text, "here") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: 1\na: 2", "`a` is given twice"), ("a: [", "line 1"), ("? [1]\n: 2", "plain scalar"), ("!!python/object:os.x {}", "YAML")],
)
def test_yaml_that_is_none_or_more_than_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "here")


@pytest.mark.parametrize("data", [b"", b"[1, 2]", b"\xff\x00", b"just text"])
def test_a_file_must_be_a_mapping(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match="a.yaml"):
        read_yaml(path)
    with pytest.raises(InputError, match="cannot read|no such file"):
        read_yaml(tmp_path)
    with pytest.raises(InputError, match="did you mean.*a.yaml"):
        read_yaml(tmp_path / "aa.yaml")


def test_a_file_extends_one_other_and_sets_come_last(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: a\ninner: {depth: 1}\nlist: [{x: 1}, {x: 2}]\n")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\ninner: {depth: 2}\n")
    (tmp_path / "third.yaml").write_text("extends: over.yaml\n")
    data = apply_sets(read_extending(tmp_path / "over.yaml"), ["list.1.x=7", "inner.depth=3", "inner.depth=4"])
    assert data == {"name": "a", "inner": {"depth": 4}, "list": [{"x": 1}, {"x": 7}]}
    with pytest.raises(InputError, match="one level"):
        read_extending(tmp_path / "third.yaml")


def test_another_kind_keeps_no_keys_of_the_old_one() -> None:
    assert merge({"p": {"kind": "a", "x": 1}}, {"p": {"kind": "b", "y": 2}}) == {"p": {"kind": "b", "y": 2}}
    assert merge({"p": {"kind": "a", "x": 1}}, {"p": {"kind": "a", "y": 2}}) == {"p": {"kind": "a", "x": 1, "y": 2}}


@pytest.mark.parametrize("text", ["inner", "=3", "list.9=1", "list.x=1", "name.deeper=1", "inner=["])
def test_a_set_that_leads_nowhere_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        apply_sets({"name": "a", "list": [1]}, [text])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"dept": 1}}, r"unknown key `dept`.*did you mean `depth`.*\(r.yaml: inner\)"),
        ({"inner": None}, r"must be a mapping of keys, is empty \(r.yaml: inner\)"),
        ({"inner": [1]}, r"must be a mapping of keys, given list \(r.yaml: inner\)"),
        ({"inner": {"depth": "deep"}}, r"valid integer.*`deep` \(r.yaml: inner.depth\)"),
        ({"name": 3, "inner": {"depth": "deep"}}, r"and 1 more"),
    ],
)
def test_the_first_problem_is_one_line_with_its_place(data: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(Outer, data, "r.yaml")
    assert "\n" not in str(caught.value)


def test_names_have_no_way_out_of_a_folder() -> None:
    import re

    assert all(not re.match(NAME_PATTERN, name) for name in ("", ".", "..", "a/b", "-x", "a.b", "ä"))


def test_differences_are_named_as_a_set_would_name_them() -> None:
    one = {"seed": 1, "list": [1, 2], "corpora": [{"card": "a"}, {"card": "b"}], "part": {"width": 3, "kind": "x"}, "more": None}
    other = {"seed": 1, "list": [1, 3], "corpora": [{"card": "a"}, {"card": "c"}], "part": {"width": 4, "kind": "y", "new": 5}}
    assert list(differences(one, other)) == [
        ("list", [1, 2], [1, 3]),
        ("corpora.1.card", "b", "c"),
        ("part.kind", "x", "y"),  # what a block is comes before what it says
        ("part.width", 3, 4),
        ("part.new", None, 5),
    ]
    assert not list(differences(one, one)) and list(differences([{"a": 1}], [])) == [("", [{"a": 1}], [])]
    assert not list(differences(apply_sets(one, [f"{key}={wanted}" for key, _, wanted in differences(one, other)]), other))
