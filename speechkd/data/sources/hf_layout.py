"""The files of a Hugging Face dataset on disk, and the split that each of them belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from speechkd.core.config import parse_yaml
from speechkd.core.errors import InputError
from speechkd.core.text import read_text
from speechkd.data.sources import paths
from speechkd.data.sources.stated import below, stated_split

_KEY = "source.path"


def stated_files(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """(split, file) of a card's path: a `save_to_disk` folder, a folder of Parquet files, or files; the split is empty if none is stated.

    A split is stated by dataset_dict.json, state.json, the `configs` of a README.md, or the names of Parquet files and their folders.
    """
    path = paths.below(root, name, _KEY)
    if not path.is_dir():
        for file in paths.files(root, name, _KEY):
            yield stated_split(below(file, root)) if file.suffix == ".parquet" else _of_arrow(file.parent), file
    elif (path / "dataset_dict.json").is_file():
        for part in _names(path / "dataset_dict.json", "splits"):
            for _, file in stated_files(root, f"{name}/{part}"):
                yield part, file
    elif (path / "state.json").is_file():
        for entry in _names(path / "state.json", "_data_files", "filename"):
            yield _of_arrow(path), paths.file(root, f"{name}/{entry}", _KEY)
    elif parquet_files := sorted(path.rglob("*.parquet")):
        card = _of_readme(path)
        for file in parquet_files:
            yield card.get(file) or stated_split(below(file, root)), file
    else:
        raise InputError(f"`{path}` is not a `save_to_disk` folder and holds no Parquet files (card: source.path)")


def _of_arrow(folder: Path) -> str:
    """The split in a `save_to_disk` folder's state.json, as `test` or `test[:10%]`; empty if it has none."""
    if not (folder / "state.json").is_file():
        return ""
    split = _json(folder / "state.json").get("_split")
    return re.sub(r"\[[^\]]*\]$", "", split) if isinstance(split, str) else ""


def _of_readme(folder: Path) -> dict[Path, str]:
    """File -> split, from `configs` in the front matter of a dataset's README.md."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    front = re.match(r"---\r?\n(.*?)\r?\n---\s*$", readme.read_text(encoding="utf-8-sig", errors="replace"), re.DOTALL | re.MULTILINE)
    facts = parse_yaml(front[1], str(readme)) if front else None
    configs = facts.get("configs") if isinstance(facts, Mapping) else None
    out: dict[Path, str] = {}
    for config in configs if isinstance(configs, list) else []:
        for split, pattern in _patterns(config.get("data_files") if isinstance(config, Mapping) else None):
            for match in glob(pattern, root_dir=folder, recursive=True):
                if out.setdefault(folder / match, split) != split:
                    raise InputError(f"`{match}` is of two splits, {out[folder / match]} and {split} ({readme}): name each (card: {_KEY})")
    return out


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    entries: list[tuple[Any, Any]] = list(data_files.items()) if isinstance(data_files, Mapping) else []
    if isinstance(data_files, list):
        entries = [(entry.get("split"), entry.get("path")) for entry in data_files if isinstance(entry, Mapping)]
    for split, given in entries:
        for pattern in given if isinstance(given, list) else [given]:
            if isinstance(split, str) and isinstance(pattern, str) and not pattern.startswith("/") and ".." not in pattern:
                yield split, pattern


def _names(path: Path, key: str, inner: str = "") -> list[str]:
    """A list of texts in a JSON file, or of one text in each of its objects. Raises InputError for anything else."""
    listed = _json(path).get(key, [])
    entries = [entry.get(inner) if isinstance(entry, dict) else None for entry in listed] if inner and isinstance(listed, list) else listed
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
        raise InputError(f"`{key}` must be a list of {f'objects with a `{inner}`' if inner else 'names'} ({path})")
    return entries


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read `{path}`: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"cannot read `{path}`: not a JSON object")
    return value
