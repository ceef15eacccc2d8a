"""Resolves a card's paths below the data root, and refuses paths outside it.

The data root is the folder in the environment variable SPEECHKD_DATA or, if unset, the card's folder. It is not part of the card's digest,
so the same card gives the same shards on every machine.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from pydantic import field_validator

from speechkd.core.config import Config
from speechkd.core.errors import InputError, nearest
from speechkd.core.text import composed, text_encoding
from speechkd.data.audio.raw import Rejected
from speechkd.data.sources.base import MissingData, Unmatched, unmatched
from speechkd.data.sources.braces import braces

ROOT_VARIABLE = "SPEECHKD_DATA"
_SHOWN = 5
"""Names of a folder in a message"""

PathBySplit = str | dict[str, str]
"""One path, or split -> path."""


def data_root(card_dir: Path) -> Path:
    """The folder that a card's paths are relative to."""
    return Path(os.environ.get(ROOT_VARIABLE) or card_dir)


def below(root: Path, name: str, key: str) -> Path:
    """A card's path below the data root. Raises InputError if it is outside. `key`: the card's key, for the message."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise InputError(f"`{name}` must be a path below the data root, without `..` (card: {key}); set {ROOT_VARIABLE} to change the root")
    return root / path


def folder(root: Path, name: str, key: str) -> Path:
    """An existing folder of raw data. Raises MissingData, or InputError where the name looks misspelt."""
    path = below(root, name, key)
    if not is_there(path, Path.is_dir):
        raise _missing(root, path, "folder", key)
    return path


def file(root: Path, name: str, key: str) -> Path:
    """An existing file of raw data. Raises MissingData, or InputError where the name looks misspelt."""
    path = below(root, name, key)
    if not is_there(path, Path.is_file):
        raise _missing(root, path, "file", key)
    return path


def files(root: Path, pattern: str, key: str) -> list[Path]:
    """Sorted files that match a path with braces ({0..9}, {a,b}, NeMo's _OP_0..9_CL_) or * and ?. Every name from braces must exist."""
    matched: list[Path] = []
    for name in braces(pattern):
        path = below(root, name, key)
        if any(mark in name for mark in "*?["):
            matches = sorted(root / match for match in glob.glob(name, root_dir=root, recursive=True))
            matched += [match for match in matches if match.is_file()]
            if not matches:
                raise _missing(root, path, "file like", key)
        else:
            matched.append(file(root, name, key))
    return sorted(set(matched))


def is_there(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether there is such a path; a name that no file can have (too long, no Unicode) is not there."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def on_disk(folder: Path, name: PurePosixPath) -> str | Rejected | None:
    """The name of a file below `folder` that only differs from `name` in Unicode form, as systems write them (`é`); None without one.

    Rejected where several do.
    """
    if str(name).isascii() or name.is_absolute():
        return None
    found = PurePosixPath()
    for part in name.parts:
        if is_there(folder / found / part, Path.exists):
            found /= part
            continue
        try:
            same = [entry for entry in os.listdir(folder / found) if composed(entry) == composed(part)]
        except OSError:
            return None
        if len(same) > 1:
            return Rejected(f"`{part[:80]}` is not there, and {len(same)} names differ from it in Unicode form only: rename one")
        if not same:
            return None
        found /= same[0]
    return None if found == name else str(found)


def _missing(root: Path, path: Path, what: str, key: str) -> InputError:
    """The error for a path that is not there: MissingData where nothing of it is, else a misspelling, with the nearest path that exists."""
    if not is_there(root, Path.is_dir):
        return InputError(f"no folder `{root.absolute()}`: it should hold the corpora ({ROOT_VARIABLE})")
    there, parts = root, list(path.relative_to(root).parts)
    while len(parts) > 1 and is_there(there / parts[0], Path.is_dir):
        there /= parts.pop(0)
    is_kind = Path.is_dir if what == "folder" or len(parts) > 1 else Path.is_file
    beside = [name for name in os.listdir(there) if is_there(there / name, is_kind)]
    cards = {".yaml", ".yml"} - {path.suffix}  # without SPEECHKD_DATA, the data lies beside the cards
    close = nearest(parts[0], [name for name in beside if Path(name).suffix not in cards])
    hint = f"; did you mean `{Path(there / close, *parts[1:]).relative_to(root)}`?" if close else ""
    misspelt = close is not None or there != root
    if misspelt and not close:
        hint = f"; `{there.absolute()}` holds {', '.join(sorted(beside)[:_SHOWN]) or f'no {what}'}"
    way_out = f"put the corpus's data there, or set {ROOT_VARIABLE} to the folder that holds it"
    return (InputError if misspelt else MissingData)(f"no {what} `{path.absolute()}`: {way_out} (card: {key}){hint}")


class TextFiles(Config):
    """How the text files of a corpus are encoded."""

    encoding: str = ""
    """encoding of text files that begin with no byte order mark, e.g. `cp1252`; empty: UTF-8"""

    @field_validator("encoding")
    @classmethod
    def _exists(cls, encoding: str) -> str:
        return text_encoding(encoding)


_GONE = "no such file"
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
AUDIO = ("flac", "wav", "mp3", "ogg", "opus")
"""Suffixes of audio files"""


class AudioPaths(Config):
    """Location of the audio files."""

    root: str = ""
    """folder below the data root that audio paths are relative to; empty: the data root itself"""
    moved: dict[str, str] = {}
    """beginning of the paths in the raw data -> folder below `root` that it stands for: `{/data/calls: "", 'D:\\calls': ""}`. Windows paths
    match in any case, with either slash"""


class AudioFolder:
    """Finds audio files by untrusted names. Never leaves its folder, neither by links nor by `..`."""

    def __init__(self, data_root: Path, config: AudioPaths) -> None:
        self.path = folder(data_root, config.root, "source.root")
        self._root = self.path.resolve()
        self._whole = bool(config.root)
        self._last = self.path, self._root
        self._below = config.root
        self._moved = [(old.rstrip("/\\"), new) for old, new in sorted(config.moved.items(), key=lambda pair: -len(pair[0]))]

    def find(self, name: str) -> Path | Rejected:
        """The file called `name`, or why it is rejected. An absolute path must be below the folder."""
        found = self._find(self._there(name))
        if isinstance(found, Rejected) and found.reason.startswith(_GONE) and "\\" in name and not _DRIVE.match(name):
            return self._find(name.replace("\\", "/"))
        return found

    def _find(self, name: str) -> Path | Rejected:
        path = PurePosixPath(name)
        tried = "".join(letter if letter.isprintable() else "\ufffd" for letter in str(PurePosixPath(self._below, name))[:200])
        if ".." in path.parts or "\0" in name:
            return Rejected("path must stay below the root folder")
        if _DRIVE.match(name):
            return Rejected(f"path must stay below the root folder, is `{tried}`: `moved` maps the beginning of a path to a folder there")
        try:
            unresolved = self._root / path
            target = self._resolved(unresolved.parent) / unresolved.name
            facts = os.lstat(target) if target.is_relative_to(self._root) else None
            if facts is None or stat.S_ISLNK(facts.st_mode):
                target = target.resolve()
                if not target.is_relative_to(self._root):
                    outside = path.is_absolute() and not unresolved.is_relative_to(self._root)
                    way_out = f", is `{tried}`: `moved` maps the beginning of a path to a folder there"
                    return Rejected(f"path must stay below the root folder{way_out}" if outside else "is a link to outside the root folder")
                facts = target.stat()
            if not stat.S_ISREG(facts.st_mode):
                return Rejected(f"{_GONE}: `{tried}`")
        except (FileNotFoundError, NotADirectoryError):
            other = on_disk(self._root, path)
            if other is not None:
                return other if isinstance(other, Rejected) else self._find(other)
            near = _in_other_case(unresolved)
            return Rejected(f"{_GONE}: `{tried}`" + (f"; `{near}` differs in case only: correct the list, or rename it" if near else ""))
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name that is no Unicode
            return Rejected(f"cannot be found: {error}")
        return target

    def unlisted(self, names: Iterable[str]) -> list[Unmatched]:
        """Audio files that no list names: below `root`, or without one (the data root has other corpora too) beside the files named."""
        given = [name for name in names if name]
        self._refuse_unused(given)
        listed = {str(PurePosixPath(self.placed(name))) for name in given}
        folders = {"": True} if self._whole else {str(PurePosixPath(name).parent): False for name in listed}
        found: list[str] = []
        for folder, deep in sorted(folders.items()):
            inside = ".." not in PurePosixPath(folder).parts and is_there(self.path / folder, Path.is_dir)
            for path, below, here in os.walk(self.path / folder) if inside else []:
                place = os.path.relpath(path, self.path)
                found += [os.path.normpath(os.path.join(place, file)) for file in here if _is_audio(file)]
                below[:] = below if deep else []
        named = {composed(name) for name in listed}
        strays = [file for file in set(found) - listed if composed(file) not in named]
        return unmatched("audio files are named by no list", sorted(strays), len(set(found)), limit=1.0)

    def _there(self, name: str) -> str:
        """The name with `moved` applied."""
        for old, new in self._moved:
            if name.startswith(old + "/"):
                return str(PurePosixPath(new, name[len(old) + 1 :]))
            if _is_windows(old) and _plain(name).startswith(_plain(old) + "/"):
                return str(PurePosixPath(new, name[len(old) + 1 :].replace("\\", "/")))
        return name

    def _refuse_unused(self, names: Sequence[str]) -> None:
        """Refuse a key of `moved` with which no path begins. Raises InputError with the nearest beginning."""
        for old, _ in self._moved if names else ():
            if any(name.startswith(old + "/") or (_is_windows(old) and _plain(name).startswith(_plain(old) + "/")) for name in names):
                continue
            parts = len(re.split(r"[/\\]", old))
            heads = dict.fromkeys("".join(re.split(r"([/\\])", name)[: 2 * parts - 1]) for name in names)
            close = nearest(old, heads)
            hint = f"; did you mean `{close}`?" if close else ""
            raise InputError(f"no path begins with `{old}/`; paths are like `{names[0][:100]}`{hint} (card: source.moved)")

    def placed(self, name: str) -> str:
        """The name with `moved` applied, relative to the folder if it is an absolute path below it."""
        name = self._there(name)
        if "\\" in name and not is_there(self.path / name, Path.exists):
            name = name.replace("\\", "/")
        path = PurePosixPath(name)
        for root in (self.path, self._root):
            if path.is_absolute() and path.is_relative_to(root):
                return str(path.relative_to(root))
        return name

    def _resolved(self, folder: Path) -> Path:
        """The folder with links resolved. The last one is cached, since consecutive files are mostly in the same folder."""
        if folder != self._last[0]:
            self._last = folder, folder.resolve()
        return self._last[1]


def _in_other_case(path: Path) -> str | None:
    """The name of a file beside `path` that only differs from it in case; a list written on Windows or macOS may mean it."""
    try:
        beside = os.listdir(path.parent)
    except OSError:
        return None
    return next((name for name in sorted(beside) if name.casefold() == path.name.casefold()), None)


def _is_windows(path: str) -> bool:
    return "\\" in path or path[1:2] == ":"


def _plain(path: str) -> str:
    """A Windows path for comparing."""
    return path.replace("\\", "/").casefold()


def _is_audio(file: str) -> bool:
    return file.rpartition(".")[2].lower() in AUDIO and not file.startswith(".")
