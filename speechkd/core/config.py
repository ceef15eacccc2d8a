"""Typed configuration: YAML by the safe loader, unknown keys refused with the nearest name, `--set a.b=v` over file over default."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from speechkd.core.errors import InputError, unknown_name
from speechkd.core.files import no_such_file

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""Names that become folders, keys or turns: no dot, no slash, no leading dash."""


class Config(BaseModel):
    """Base of every configuration: frozen, and a key that it does not know is an error that names the nearest one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False)
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions -> what to write now: refused like any unknown key, but with the answer"""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key in cls.RENAMED:
                    raise ValueError(f"key `{key}` is now {cls.RENAMED[key]}")
                if key not in cls.model_fields:
                    raise ValueError(unknown_name("key", str(key), cls.model_fields))
        return data


C = TypeVar("C", bound=BaseModel)
_PART = ("kind", "backend")
"""Keys that say which part a block configures"""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of 1.2: a key given twice is refused; `no`, `007`, `12:30` and `1_000` stay text."""


_CORE_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag.rpartition(":")[2] in _CORE_TAGS
}
"""Dates, sets and bytes would be values that no key takes; `None` refuses what is not listed."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    if not isinstance(node, yaml.MappingNode):
        raise yaml.MarkedYAMLError(problem="`!!map` stands before what is no mapping", problem_mark=node.start_mark)
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int, float, bool)):
            raise yaml.MarkedYAMLError(problem="a key must be a plain scalar", problem_mark=key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"key `{key}` is given twice", problem_mark=key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
"""https://yaml.org/spec/1.2.2/#103-core-schema, without leading zeros in decimal numbers: 007 is a name. All else is text."""
_Loader.yaml_implicit_resolvers = {}
for _tag, _rule, _first in _CORE_SCHEMA:  # PyYAML takes the first that matches
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_rule})$"), ["" if c == "\0" else c for c in _first])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def _int(text: str) -> int:
    return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """A plain value. A tag may stand before any text (`!!int x`), and a number may have more digits than Python reads."""
    tag = node.tag.rpartition(":")[2]
    try:
        return _VALUES[tag](loader.construct_scalar(node))
    except (ValueError, KeyError):
        raise yaml.MarkedYAMLError(problem=f"{ascii(node.value)[:40]} is no {tag} that can be read", problem_mark=node.start_mark) from None


def _text(text: str) -> str:
    """A text that a file can hold: escapes may spell NUL, or half of a character."""
    if "\0" in text or re.search("[\ud800-\udfff]", text):
        raise ValueError
    return text


_VALUES: Mapping[str, Callable[[str], Any]] = {
    "str": _text,
    "null": lambda text: {"": None, "~": None, "null": None}[text.lower()],
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _int,
    "float": lambda text: float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower())),
}
for _tag in _VALUES:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that YAML 1.1 or our loader would read as something else."""


for _tag, _rule, _first in _CORE_SCHEMA:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_rule})$"), ["" if c == "\0" else c for c in _first])


def dump_yaml(value: Any, width: int = 80) -> str:
    """YAML that `parse_yaml` reads back as the same value, keys in their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
    return text


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML by a safe loader. Raises InputError with file and line."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader subclass)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"not valid YAML: {getattr(error, 'problem', None) or error} ({where}{line})") from None
    except RecursionError:
        raise InputError(f"not valid YAML: nested too deeply ({where})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping from `path`. Raises InputError if the file is missing, unreadable or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(no_such_file(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read `{path}`: {error}") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise InputError(f"must be a mapping of keys, is {type(data).__name__} ({path})")
    return data


def read_extending(path: Path) -> dict[str, Any]:
    """Read a YAML file over the one that it `extends`: one file beside it, one level. Raises InputError."""
    data = read_yaml(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    name = str(parent)
    base = read_yaml(path.parent / name)
    if "extends" in base:
        raise InputError(f"`extends` goes one level: `{name}` extends another file ({path}: extends)")
    return merge(base, data)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: mappings merge key by key, everything else is replaced; so is a part of another `kind` or `backend`."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both and not _another(out[key], value) else value
    return out


def _another(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether two blocks name different parts, whose other keys then mean different things."""
    return any(name in over and name in base and over[name] != base[name] for name in _PART)


def differences(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each dotted key in which two configurations differ, with both values (None: not there), in the order in which they are written.

    Mappings are opened where both sides have one, lists of mappings where they are equally long; any other list is one value.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted(dict.fromkeys([*one, *other]), key=lambda name: name not in _PART):  # what a block is, before what it says
            yield from differences(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))
    elif _blocks(one) and _blocks(other) and len(one) == len(other):
        for index, (mine, theirs) in enumerate(zip(one, other)):
            yield from differences(mine, theirs, f"{key}.{index}")
    elif one != other:
        yield key, one, other


def _blocks(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def apply_sets(data: dict[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=value` overrides (values are YAML; `a.2=x` reaches a list item). Raises InputError on a malformed one."""
    for text in sets:
        path, eq, value = text.partition("=")
        if not eq or not path:
            raise InputError(f"`--set {text}` must be key.path=value")
        data = _set(data, path.split("."), parse_yaml(value, f"--set {text}"), text)
    return data


def _set(node: Any, path: list[str], value: Any, text: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise InputError(f"`--set {text}`: `{head}` must be an index below {len(node)}")
        return [_set(item, rest, value, text) if i == int(head) else item for i, item in enumerate(node)]
    if node is not None and not isinstance(node, Mapping):
        raise InputError(f"`--set {text}`: `{head}` goes below a plain value")
    return {**(node or {}), head: _set((node or {}).get(head), rest, value, text)}


def build(model: type[C], data: Any, where: str) -> C:
    """Validate `data` as `model`. Raises InputError with file, dotted key, what was given and what is allowed, first problem only."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{_explain(first)} ({where}{': ' + key if key else ''}){more}") from None


def _explain(problem: Mapping[str, Any]) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "missing":
        return f"key `{problem['loc'][-1]}` is missing"
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        ctx = problem["ctx"]
        allowed = re.findall(r"'([^']*)'", ctx.get("expected") or ctx.get("expected_tags") or "")
        return unknown_name("value", str(ctx.get("tag", given)), allowed)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a mapping of keys, {'is empty' if given is None else f'given {_short(given)}'}"
    if kind == "string_pattern_mismatch" and problem["ctx"]["pattern"] == NAME_PATTERN:
        return f"must be letters, digits, `_` and `-`, beginning with a letter or digit, given {_short(given)}"
    return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, given {_short(given)}"


def _short(value: Any) -> str:
    text = f"`{value}`" if isinstance(value, (str, int, float, bool)) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "...`"
