"""Splits that the data's own layout states: `data/test-00000-of-00003.parquet`, `cuts_dev.jsonl.gz`, `data/test/`, `train/a.wav`.

A card names splits by a mapping of split to path, by `split`, or by `split_field`. Where it names none, what the names of the data's files
and folders say is taken, so that a test set does not become training data because nobody mentioned it. The words are those of
https://huggingface.co/docs/hub/datasets-file-names-and-splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from speechkd.core.errors import InputError
from speechkd.data.sources import paths
from speechkd.data.storage.names import KEY_LETTERS, is_name

KINDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation", "devel": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Word of a name -> the kind of split that it states"""
FIELDS = ("split", "splits", "subset", "partition", "part", "set", "data_split")
"""Metadata fields whose values are splits, if all of them are words of KINDS"""
_SHARDED = re.compile(r"^(?P<name>.+)-\d{5}-of-\d{5}(?=[.-]|$)")
_NO_SPLIT = {"data", "part", "shard", "chunk", "file", "dataset", "default"}
"""What stands before `-00000-of-00001` and is not a split"""


class SplitConfig(Protocol):
    """A source's configuration."""

    @property
    def split(self) -> str:
        """The split of what states none."""

    @property
    def model_fields_set(self) -> set[str]:
        """The keys that the card sets."""


def kind_of(text: str) -> str | None:
    """The kind of split that a whole value such as `train-clean-100` or `dev` states; None if it states none."""
    return KINDS.get(re.split(r"[^a-z]", text.casefold(), maxsplit=1)[0])


def _of_file(name: str) -> str:
    if sharded := _SHARDED.match(name):
        name = sharded["name"]
        if kind_of(name):
            return name  # `train.clean.100` and `train.other.500` are two splits
    words = [word for word in re.split(r"[^a-z]+", name.casefold()) if word in KINDS]
    if len({KINDS[word] for word in words}) > 1:
        raise InputError(f"`{name}` names two splits, {words[0]} and {words[1]}: say in the card which it is (source.split: NAME)")
    return words[0] if words else ""


def stated_split(path: PurePosixPath, is_folder: bool = False) -> str:
    """The split that a path states: by its last name, else by the nearest folder; empty if by none. `is_folder`: all of it is folders.

    A folder counts if it begins with a word of KINDS (`test-other`), one further up if it is such a word.
    """
    folders = list(path.parts)
    if folders and not is_folder:
        file = folders.pop()
        if found := _of_file(file):
            return found
        sharded = _SHARDED.match(file)
        if sharded and folders[-1:] == ["data"] and sharded["name"].casefold() not in _NO_SPLIT:
            return sharded["name"]
    for up, folder in enumerate(reversed(folders)):
        if folder.casefold() in KINDS or (up == 0 and kind_of(folder)):
            return folder
    return ""


def checked(split: str, where: object, key: str, beside: Iterable[str] = ()) -> str:
    """The split as a name of the product. Raises InputError, with what to write in the card, if it cannot be one.

    `beside`: all splits of the same path, since a mapping replaces them all.
    """
    if split and not is_name(split):
        rename = _way_out(beside or [split], key)
        raise InputError(f"split `{split}` of `{where}` must be letters, digits, _ or -: name it in the card, as {rename}")
    return split


def _way_out(splits: Iterable[str], key: str) -> str:
    names = ["".join(c if c in KEY_LETTERS else "_" for c in split) for split in splits]
    return f"{key}: {{{', '.join(f'{name}: PATH' for name in names if name)}}}"


def named(config: SplitConfig, value: paths.PathBySplit) -> list[tuple[str, str]]:
    """(split, path) as the card names them; an empty split where it names none."""
    if isinstance(value, Mapping):
        return list(value.items())
    return [(config.split if "split" in config.model_fields_set else "", value)]


def by_split(config: SplitConfig, value: paths.PathBySplit, key: str, is_folder: bool = False) -> list[tuple[str, str]]:
    """(split, path) of a card's key that names one file or folder a split. Raises InputError for a split that cannot be a name."""
    return [
        (split or checked(stated_split(PurePosixPath(name), is_folder), name, key) or config.split, name)
        for split, name in named(config, value)
    ]


def files_by_split(config: SplitConfig, value: paths.PathBySplit, root: Path, key: str) -> list[tuple[str, Path]]:
    """(split, file) of a card's key whose paths may be patterns: each file states its own split where the card names none."""
    out = []
    for split, name in named(config, value):
        found = [(stated_split(below(path, root)), path) for path in paths.files(root, name, key)]
        out += one_each(found, split, root, name, config.split, key)
    return out


def below(path: Path, root: Path) -> PurePosixPath:
    """The path below the data root: folders above it, such as `/data/test/`, say nothing about the corpus."""
    return PurePosixPath(path.relative_to(root).as_posix())


def one_each(files: list[tuple[str, Path]], given: str, root: Path, name: str, default: str, key: str) -> list[tuple[str, Path]]:
    """(split, file) of one path of a card, whose files state `files`: the card's name for all of them, or what they state.

    Raises InputError if one name is given to a folder or to a pattern with several splits (`{train,dev}-*` lists two patterns, and may be
    one split), or if some files state a split and others none.
    """
    splits = list(dict.fromkeys(split for split, _ in files))
    if given:
        is_folder, of_file = (root / name).is_dir(), {path: split for split, path in files}
        for pattern in [] if len(splits) == 1 else [name] if is_folder else paths.braces(name):
            held = splits if is_folder else list(dict.fromkeys(of_file[path] for path in paths.files(root, pattern, key)))
            if len(held) > 1:
                listed = ", ".join(split or "none" for split in held)
                raise InputError(f"`{pattern}` holds the splits {listed}, but is called `{given}`: name each, as {_way_out(held, key)}")
        return [(given, path) for _, path in files]
    if len(splits) > 1 and "" in splits:
        bare, stated = next(path for split, path in files if not split), [split for split in splits if split]
        raise InputError(f"`{bare}` states no split, others of `{name}` do ({', '.join(stated)}): name each, as {_way_out(stated, key)}")
    return [(checked(split, name, key, splits) or default, path) for split, path in files]
