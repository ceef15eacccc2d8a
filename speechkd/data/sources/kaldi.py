"""Kaldi data directories: wav.scp, text, utt2spk and, for recordings of many utterances, segments.

https://kaldi-asr.org/doc/data_prep.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from speechkd.core.errors import InputError
from speechkd.core.text import paired_forms, text_lines
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import PAIRED, Item, Unmatched, unmatched
from speechkd.data.sources.paths import AudioFolder, AudioPaths, TextFiles
from speechkd.data.sources.rows import read_files
from speechkd.data.storage.names import clean_name

FIELDS = {"utt2spk": "speaker", "utt2lang": "language", "utt2dur": "", "utt2num_frames": "", "utt2uniq": ""}
"""utt2* file -> field name (empty: ignored); any other utt2<name> is field <name>"""

_CHANNELS = {"A": 0, "B": 1}


class KaldiConfig(AudioPaths, TextFiles):
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
        self.unmatched: list[Unmatched] = []
        self.config = config
        self.audio = AudioFolder(data_root, config)
        self.dirs = [
            (split, paths.folder(data_root, name, "source.dir"))
            for split, name in stated.by_split(config, config.dir, "source.dir", is_folder=True)
        ]
        for _, folder in self.dirs:
            if not (folder / "wav.scp").is_file():
                raise InputError(f"no file `{folder / 'wav.scp'}`: a Kaldi data directory has one (card: source.dir)")

    def items(self) -> list[Item]:
        """All utterances, sorted by key. Raises InputError naming file and line."""
        self.unmatched = []
        items = [item for split, folder in self.dirs for item in self._utterances(folder, split)]
        self.unmatched += self.audio.unlisted(item.payload.get("audio", "") for item in items)
        return sorted(items, key=lambda item: item.key)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each utterance's file or segment."""
        for item in items:
            yield Rejected(item.payload["problem"]) if "problem" in item.payload else next(read_files([item], self.audio.find))

    def _utterances(self, folder: Path, split: str) -> Iterator[Item]:
        recordings = self._table(folder / "wav.scp")
        for name, value in recordings.items():
            _is_file(name, value, folder / "wav.scp")
        fields = {
            FIELDS.get(path.name, path.name.removeprefix("utt2")): self._table(path)
            for path in [*sorted(folder.glob("utt2*")), folder / "text"]
            if path.is_file()
        }
        fields.pop("", None)
        genders = self._table(folder / "spk2gender") if (folder / "spk2gender").is_file() else {}
        segments = self._table(folder / "segments") if (folder / "segments").is_file() else None
        utterances = dict(_spans(folder, recordings, segments))
        for values in fields.values():
            for name, spelled in paired_forms(set(utterances) - set(values), set(values) - set(utterances)).items():
                values[name] = values.pop(spelled)
        self.unmatched += _unmatched(folder, recordings, segments, utterances, fields)
        speakers = set()
        for utterance, payload in utterances.items():
            metadata: dict[str, Scalar] = {name: values[utterance] for name, values in fields.items() if values.get(utterance)}
            speakers.add(str(metadata.get("speaker", "")))
            if gender := genders.get(str(metadata.get("speaker", ""))):
                metadata["gender"] = {"m": "male", "f": "female"}.get(gender, gender)
            yield Item(clean_name(utterance), split, metadata, {**payload, "utterance": utterance}, utterance)
        if genders:
            unknown = sorted(speaker for speaker in speakers if speaker and speaker not in genders)
            self.unmatched += unmatched(f"speakers have no line in `{folder / 'spk2gender'}`", unknown, len(speakers))
            idle = [speaker for speaker in genders if speaker not in speakers]
            self.unmatched += unmatched(
                f"lines of `{folder / 'spk2gender'}` name no speaker of an utterance", idle, len(genders), lookup=True
            )

    def _table(self, path: Path) -> dict[str, str]:
        """First word of each line -> the rest of the line."""
        out: dict[str, str] = {}
        for number, line in text_lines(path, self.config.encoding):
            words = line.split(None, 1)
            if words and words[0] in out:
                raise InputError(f"`{words[0]}` is given twice: remove a line ({path}, line {number})")
            if words:
                out[words[0]] = words[1].strip() if len(words) > 1 else ""
        return out


def _is_file(name: str, value: str, path: Path) -> None:
    """Refuse what wav.scp may name and is no file of audio."""
    if value.endswith("|") or value.startswith("|") or value == "-":
        raise InputError(f"`{name}` is a command, not a file: pipes in wav.scp are never run; write their output to files ({path})")
    if re.search(r"\.(?:ark|scp)(?::\d+)?(?:\[.*\])?$", value):
        raise InputError(
            f"`{name}` is `{value[:60]}`, a part of an archive: archives are not read; write it to files, by `wav-copy` say ({path})"
        )


def _unmatched(
    folder: Path,
    recordings: dict[str, str],
    segments: dict[str, str] | None,
    utterances: dict[str, dict[str, Any]],
    fields: dict[str, dict[str, str]],
) -> list[Unmatched]:
    """What one file of a data directory names and another does not know."""
    out: list[Unmatched] = []
    if segments is not None:
        of = {utterance: value.partition(" ")[0].partition("\t")[0] for utterance, value in segments.items()}
        used = set(of.values())
        dangling = [utterance for utterance, recording in of.items() if recording not in recordings]
        out += unmatched(f"segments are of no recording of wav.scp (`{folder / 'segments'}`)", dangling, len(segments))
        out += unmatched(f"recordings of `{folder / 'wav.scp'}` have no segment", [n for n in recordings if n not in used], len(recordings))
    for field, values in fields.items():
        strays = [utterance for utterance in values if utterance not in utterances]
        out += unmatched(f"ids of `{field}` name no utterance (`{folder}`)", strays, len(values))
        without = [utterance for utterance in utterances if not values.get(utterance)]
        limit = PAIRED if field == "text" else 1.0  # an accent, say, may be known of a few
        out += unmatched(f"utterances have no `{field}` (`{folder}`)", without, len(utterances), limit)
    return out


def _spans(folder: Path, recordings: dict[str, str], segments: dict[str, str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(utterance, its payload): whole recordings, or spans of them where the directory has `segments` (end -1: to the recording's end)."""
    if segments is None:
        for name, path in recordings.items():
            yield name, {"audio": path}
        return
    for utterance, value in segments.items():
        where = f"{folder / 'segments'}, `{utterance}`"
        words = value.split()
        if len(words) not in (3, 4):
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
        if words[0] not in recordings:
            yield utterance, {"problem": f"its recording `{words[0]}` is not in wav.scp"}
            continue
        yield utterance, {"audio": recordings[words[0]], "start": start, "seconds": None if end == -1 else end - start, **channel}
