"""YAML and command-line values are read as meant, or refused with one line that says what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd.core.config import NAME_PATTERN, Config, apply_sets, build, differences, merge, parse_yaml, read_extending, read_yaml
from speechkd.core.errors import InputError


class Inner(Config):
    depth: int = 1


class Outer(Config):
    name: str = "x"
    inner: Inner = Inner()


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
