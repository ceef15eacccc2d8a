"""Kaldi data directories: wav.scp, text, utt2spk and, for recordings of many utterances, segments.

https://kaldi-asr.org/doc/data_prep.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from speechkd.core.errors import InputError
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths
from speechkd.data.sources.base import Item, MissingData
from speechkd.data.sources.paths import AudioFolder, AudioPaths
from speechkd.data.sources.rows import read_files
from speechkd.data.storage.names import clean_name

FIELDS = {"utt2spk": "speaker", "utt2lang": "language", "utt2dur": "", "utt2num_frames": "", "utt2uniq": ""}
"""utt2* file -> field name (empty: ignored); any other utt2<name> is field <name>"""

_CHANNELS = {"A": 0, "B": 1}


class KaldiConfig(AudioPaths):
    """wav.scp must list plain files: pipes are shell commands, and nothing from a dataset is run. `spk2gender` is read too."""

    kind: Literal["kaldi"]
    dir: paths.PathBySplit
    """data directory below the data root, or split -> data directory"""
    split: str = "train"


class KaldiSource:
    """Reads the utterances of Kaldi data directories."""

    Config = KaldiConfig

    def __init__(self, config: KaldiConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.audio = AudioFolder(data_root, config)
        self.dirs = [(split, paths.folder(data_root, name, "source.dir")) for split, name in paths.by_split(config.dir, config.split)]
        for _, folder in self.dirs:
            if not (folder / "wav.scp").is_file():
                raise MissingData(f"no file `{folder / 'wav.scp'}`: a Kaldi data directory has one (card: source.dir)")

    def items(self) -> list[Item]:
        """All utterances, sorted by key. Raises InputError naming file and line."""
        return sorted((item for split, folder in self.dirs for item in _utterances(folder, split)), key=lambda item: item.key)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each utterance's file or segment."""
        return read_files(items, self.audio.find)


def _utterances(folder: Path, split: str) -> Iterator[Item]:
    recordings = _table(folder / "wav.scp")
    for name, value in recordings.items():
        if value.endswith("|") or value.startswith("|") or value == "-":
            raise InputError(
                f"`{name}` is a command, not a file: pipes in wav.scp are never run; write their output to files ({folder / 'wav.scp'})"
            )
    fields = {
        FIELDS.get(path.name, path.name.removeprefix("utt2")): _table(path) for path in sorted(folder.glob("utt2*")) if path.is_file()
    }
    fields.pop("", None)
    if (folder / "text").is_file():
        fields["text"] = _table(folder / "text")
    genders = _table(folder / "spk2gender") if (folder / "spk2gender").is_file() else {}
    for utterance, payload in _spans(folder, recordings):
        metadata: dict[str, Scalar] = {name: values[utterance] for name, values in fields.items() if values.get(utterance)}
        if gender := genders.get(str(metadata.get("speaker", ""))):
            metadata["gender"] = {"m": "male", "f": "female"}.get(gender, gender)
        yield Item(clean_name(utterance), split, metadata, {**payload, "utterance": utterance})


def _spans(folder: Path, recordings: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(utterance, its payload): whole recordings, or spans of them where the directory has `segments` (end -1: to the recording's end)."""
    if not (folder / "segments").is_file():
        for name, path in recordings.items():
            yield name, {"audio": path}
        return
    for utterance, value in _table(folder / "segments").items():
        where = f"{folder / 'segments'}, `{utterance}`"
        words = value.split()
        if len(words) not in (3, 4) or words[0] not in recordings:
            raise InputError(f"must be an utterance, a recording of wav.scp, start and end ({where})")
        try:
            start, end = float(words[1]), float(words[2])
            channel = {"channel": _CHANNELS[words[3]] if words[3] in _CHANNELS else int(words[3])} if len(words) == 4 else {}
        except ValueError:
            raise InputError(
                f"start and end must be seconds, and the optional fourth word a channel; given `{value[:60]}` ({where})"
            ) from None
        if end != -1 and not 0 <= start < end:
            raise InputError(f"must end after it starts: {start:g} to {end:g} ({where})")
        yield utterance, {"audio": recordings[words[0]], "start": start, "seconds": None if end == -1 else end - start, **channel}


def _table(path: Path) -> dict[str, str]:
    """First word of each line -> the rest of the line."""
    out: dict[str, str] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            words = line.split(None, 1)
            if words and words[0] in out:
                raise InputError(f"`{words[0]}` is given twice ({path}, line {number})")
            if words:
                out[words[0]] = words[1].strip() if len(words) > 1 else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read `{path}`: {error}") from None
    return out
